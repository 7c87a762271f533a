"""FP8: rows come back within e4m3's step, and scores and winners stay near those of bf16."""

from dataclasses import replace

import pytest
import torch

from tests.moe.kernels.cases import Case, Inputs, both, fused, same_winners
from tests.ranks import run_rank

STEP = 2.0**-4
"""Half of e4m3's step, relative to the value; below 2^-6 of the scale steps are absolute."""

MANY = Case(hidden=96, ffn=48, tokens=512, experts=8, small_tiles=False)
WIDE = Case(hidden=96, ffn=272, tokens=128, experts=4, small_tiles=False, wide=True)


def rows_and_back() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    from megatron_compete.moe.kernels.quantize import quantize_matrices, quantize_rows
    from megatron_compete.moe.kernels.weights import address_table
    from tests.moe.kernels.interpreter import repair

    repair()
    random = torch.Generator().manual_seed(2)
    rows = (torch.randn(11, 640, generator=random) * torch.logspace(-6, 6, 11)[:, None]).bfloat16()
    rows[4] = 0
    values, scales = quantize_rows(rows)
    matrices = list(rows.view(11, 2, 320).contiguous())[:3]
    of_matrices = quantize_matrices(address_table(matrices), 2, 320, torch.bfloat16)
    return (
        rows,
        values.float() * scales[:, None],
        torch.stack(matrices),
        of_matrices[0].float() * of_matrices[1][..., None],
    )


def test_rows_come_back_within_a_step() -> None:
    rows, back, matrices, matrices_back = run_rank(rows_and_back)
    for before, after in ((rows.float(), back), (matrices.float(), matrices_back)):
        largest = before.abs().amax(-1, keepdim=True)
        allowed = torch.maximum(before.abs() * STEP, largest / 448 * 2.0**-9) * 1.001
        assert ((before - after).abs() <= allowed).all()
    assert (back[4] == 0).all() and not torch.equal(back, rows.float())


PLAIN = replace(MANY, activation="relu", gated=False)


@pytest.mark.parametrize("case", [MANY, WIDE, pytest.param(PLAIN, marks=pytest.mark.slow)], ids=str)
def test_fp8_scores_are_near_and_most_winners_the_same(case: Case) -> None:
    """Random experts are the worst case: they differ by chance alone, so that their responses lie close together."""
    in_fp8, in_bf16 = run_rank(both, case, "cpu", True)
    spread = in_bf16.std(dim=1).mean()
    assert (in_fp8 - in_bf16).square().mean().sqrt() < 0.15 * spread
    assert same_winners(in_fp8, in_bf16, k=1) > 0.9
    assert not torch.equal(in_fp8, in_bf16)


def scaled_outliers() -> tuple[torch.Tensor, torch.Tensor]:
    """The same experts, before and after a token and an output channel became a thousand times larger."""
    from tests.moe.kernels.interpreter import repair

    repair()
    case = replace(MANY, tokens=64, response="l2", activation="relu", gated=False)
    inputs = Inputs.random(case)
    before = fused(case, inputs, fp8=True)
    inputs.tokens_TH[7] *= 1024
    return before, fused(case, inputs, fp8=True)


def test_a_loud_token_leaves_the_others_alone() -> None:
    before, after = run_rank(scaled_outliers)
    others = torch.arange(64) != 7
    assert torch.equal(before[others], after[others])
    torch.testing.assert_close(after[7], 1024 * before[7], rtol=1e-5, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "case",
    [
        Case(hidden=512, ffn=128, tokens=8200, experts=64, activation="relu", gated=False, small_tiles=False),
        Case(hidden=2048, ffn=768, tokens=4100, experts=16, small_tiles=False, wide=True),
    ],
    ids=str,
)
def test_fp8_on_a_gpu(case: Case) -> None:
    in_fp8, in_bf16 = both(case, "cuda", fp8=True)
    assert (in_fp8 - in_bf16).square().mean().sqrt() < 0.2 * in_bf16.std(dim=1).mean()
    assert same_winners(in_fp8, in_bf16, k=1) > 0.9
