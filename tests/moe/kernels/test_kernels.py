"""The kernels against Megatron's operations one after the other: every activation, response, kind and ragged size."""

from dataclasses import replace

import pytest
import torch

from tests.moe.kernels.cases import Case, all_both, both, check, every_kind, same_winners
from tests.ranks import run_rank

ACTIVATIONS = ("relu", "squared_relu", "silu", "gelu", "gelu_tanh", "quick_gelu")
RESPONSES = ("softplus", "l2", "projection")

FORMS = [
    case
    for form in (
        dict(activation="silu", gated=True, response="softplus"),
        dict(activation="gelu", gated=True, response="l2", round_gate=False),
        dict(activation="gelu_tanh", gated=True, response="projection", dtype=torch.float32),
        dict(activation="relu", gated=False, response="projection", dtype=torch.float16),
        dict(activation="squared_relu", gated=False, response="softplus", dtype=torch.float32),
        dict(activation="quick_gelu", gated=False, response="l2", dtype=torch.float32),
        dict(hidden=64, ffn=32, tokens=32),
        dict(tokens=0),
    )
    for case in every_kind(Case(**form))
]
"""One case for each thing that a kernel is compiled for: gated or not with each response, each activation, precision and
rounding of the gate, sizes that fill their tiles and sizes that do not. The lists below combine these in every way, and
under the interpreter run the same lines of the kernels again."""

OF_ACTIVATIONS = [
    case
    for activation in ACTIVATIONS
    for gated in (False, True)
    for case in every_kind(Case(activation=activation, gated=gated, dtype=torch.float32))
]
IN_PRECISIONS = [
    case
    for response in RESPONSES
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
    for case in every_kind(Case(response=response, dtype=dtype, activation="relu", gated=False))
]
ROUNDED = [
    case
    for activation in ("silu", "gelu")
    for round_gate in (True, False)
    for case in every_kind(Case(activation=activation, round_gate=round_gate))
]
SHAPES = [
    case
    for sizes in ({"tokens": 1}, {"tokens": 0}, {"tokens": 32}, {"hidden": 64, "ffn": 32}, {"hidden": 136, "ffn": 8}, {"experts": 1})
    for case in every_kind(replace(Case(dtype=torch.float32), **sizes))
]  # fmt: skip
IN_USE = [
    Case(hidden=160, ffn=48, tokens=150, experts=2, small_tiles=False),
    Case(hidden=160, ffn=272, tokens=150, experts=2, small_tiles=False, wide=True),
    Case(hidden=160, ffn=48, tokens=150, experts=2, small_tiles=False, response="projection"),
    Case(hidden=264, ffn=272, tokens=150, experts=2, small_tiles=False, wide=True, response="projection"),
]


@pytest.mark.parametrize(
    "cases",
    [FORMS, *(pytest.param(cases, marks=pytest.mark.slow) for cases in (OF_ACTIVATIONS, IN_PRECISIONS, ROUNDED, SHAPES, IN_USE))],
    ids=["forms", "activations", "precisions", "rounding", "shapes", "tiles-in-use"],
)  # fmt: skip
def test_scores_are_the_plain_ones_within_rounding(cases: list[Case]) -> None:
    for case, results in zip(cases, run_rank(all_both, cases, "cpu"), strict=True):
        try:
            check(case, *results)
        except AssertionError as error:
            raise AssertionError(f"{case}: {error}") from None


@pytest.mark.parametrize("wide", [False, True], ids=["narrow", "wide"])
def test_rounding_the_gate_matters(wide: bool) -> None:
    """Otherwise the cases above could not tell."""
    rounded, once = (both_of(Case(round_gate=rounding, wide=wide))[0] for rounding in (True, False))
    assert not torch.equal(rounded, once)


def both_of(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    return run_rank(both, case, "cpu")


def test_large_small_and_no_outputs() -> None:
    """Softplus far from zero is its argument or nothing; of zeros it is ln 2, of which no tile's product may overflow."""
    for scale in (0.0, 1e-3, 300.0):
        case = Case(scale=scale, dtype=torch.float32, activation="relu", gated=False, hidden=160, small_tiles=False)
        by_kernels, by_modules = both_of(case)
        torch.testing.assert_close(by_kernels, by_modules, rtol=2e-6, atol=1e-6)


def with_a_broken_token() -> torch.Tensor:
    from tests.moe.kernels.cases import Inputs, fused
    from tests.moe.kernels.interpreter import repair

    repair()
    case = Case()
    inputs = Inputs.random(case)
    inputs.tokens_TH[3, 5] = float("nan")
    return fused(case, inputs)


def test_a_broken_token_stays_broken_and_alone() -> None:
    broken = run_rank(with_a_broken_token).isnan()
    assert broken[3].all() and broken.sum() == broken.shape[1]


MANY = Case(hidden=64, ffn=32, tokens=1024, experts=8, activation="relu", gated=False, small_tiles=False)


WIDE = replace(MANY, activation="silu", gated=True, wide=True)


@pytest.mark.parametrize("case", [MANY, pytest.param(WIDE, marks=pytest.mark.slow)], ids=str)
def test_same_winners(case: Case) -> None:
    by_kernels, by_modules = both_of(case)
    check(case, by_kernels, by_modules)
    assert same_winners(by_kernels, by_modules, k=2) >= 0.999


REAL = [
    Case(hidden=512, ffn=128, tokens=8200, experts=64, activation="relu", gated=False, small_tiles=False),
    Case(hidden=1024, ffn=256, tokens=4100, experts=66, activation="relu", gated=False, small_tiles=False),
    Case(hidden=1024, ffn=128, tokens=4100, experts=32, small_tiles=False),
    Case(hidden=1024, ffn=256, tokens=4100, experts=32, small_tiles=False),
    Case(hidden=2048, ffn=768, tokens=4100, experts=16, small_tiles=False, wide=True),
    Case(hidden=2048, ffn=1024, tokens=4100, experts=16, activation="relu", gated=False, small_tiles=False, wide=True),
    Case(hidden=4096, ffn=14336, tokens=2050, experts=8, small_tiles=False, wide=True),
]


@pytest.mark.gpu
@pytest.mark.parametrize("response", RESPONSES)
@pytest.mark.parametrize("case", REAL, ids=str)
def test_real_shapes_on_a_gpu(case: Case, response: str) -> None:
    case = replace(case, response=response)
    by_kernels, by_modules = both(case, "cuda")
    check(case, by_kernels, by_modules)
    assert same_winners(by_kernels, by_modules, k=min(8, case.experts // 4)) >= 0.999


@pytest.mark.gpu
@pytest.mark.parametrize("case", [*OF_ACTIVATIONS, *IN_PRECISIONS, *ROUNDED, *SHAPES], ids=str)
def test_small_shapes_on_a_gpu(case: Case) -> None:
    check(case, *both(case, "cuda"))
