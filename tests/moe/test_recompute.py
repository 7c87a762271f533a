"""Activation recompute: one scoring pass per microbatch, the same winners in both passes, the same gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.moe import layouts
from tests.moe.layouts import BATCH, EXPERTS, FFN, HIDDEN, SEQUENCE, Layout
from tests.moe.reference import Weights
from tests.moe.steps import check, random_batch, train_step
from tests.moe.test_layouts import CASES
from tests.ranks import run_rank

SELECTIVE: dict[str, Any] = {"recompute_granularity": "selective", "recompute_modules": ["moe"]}


@pytest.mark.parametrize("layout", [Layout(), Layout(world=4, tp=2, ep=2, etp=2), Layout(world=4, cp=2, ep=4)], ids=str)
def test_recomputed_layer_equals_dense_reference(layout: Layout) -> None:
    check(layout, random_batch(layout, SEQUENCE, BATCH), CASES, **SELECTIVE)


def winners_chosen(overrides: dict[str, Any], name: str) -> tuple[int, list[Tensor], list[Tensor]]:
    """Scoring passes, winners as routed in order, and all results of a step with three microbatches."""
    from megatron_compete.moe import layer as layer_module
    from megatron_compete.moe import scoring

    case = CASES[name]
    layer = layouts.build_layer(
        Layout(), Weights.random(EXPERTS, HIDDEN, FFN), case.config, case.current_step, **overrides
    )
    passes, routed = [], []
    score, to_map = scoring.score_tokens, layer_module.winners_map
    scoring.score_tokens = lambda *a, **k: passes.append(1) or score(*a, **k)
    layer_module.winners_map = lambda winners, experts: routed.append(winners) or to_map(winners, experts)
    try:
        result = train_step(layer, Layout(), random_batch(Layout(), SEQUENCE, BATCH, microbatches=3))
    finally:
        scoring.score_tokens, layer_module.winners_map = score, to_map
    assert not layer._first_pass
    return len(passes), routed, [*result.outputs, *result.token_grads, *result.weight_grads.values()]


def both_ways() -> None:
    layouts.initialize(Layout())
    for name in ("softplus", "options"):
        passes, routed, plain = winners_chosen({}, name)
        assert (passes, len(routed)) == (3, 3)
        passes, routed_twice, recomputed = winners_chosen(SELECTIVE, name)
        assert passes == 3
        assert all(torch.equal(*pair) for pair in zip(routed_twice, [w for w in routed for _ in range(2)], strict=True))
        assert all(torch.equal(*pair) for pair in zip(plain, recomputed, strict=True))


def test_one_scoring_pass_and_the_same_bits() -> None:
    run_rank(both_ways)


def microbatches_in_flight() -> None:
    """1F1B: several forward passes before the first backward pass."""
    layouts.initialize(Layout())
    case, grads = CASES["softplus"], []
    for overrides in ({}, SELECTIVE):
        layer = layouts.build_layer(
            Layout(), Weights.random(EXPERTS, HIDDEN, FFN), case.config, case.current_step, **overrides
        )
        tokens = [torch.randn(SEQUENCE, BATCH, HIDDEN, generator=torch.Generator().manual_seed(s)) for s in range(4)]
        outputs = [layer(microbatch.requires_grad_())[0] for microbatch in tokens]
        for output in outputs:
            output.square().sum().backward()
        grads.append([*(t.grad for t in tokens), *(p.grad for p in layouts.parameters(layer).values())])
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))


def test_microbatches_in_flight_keep_their_winners() -> None:
    run_rank(microbatches_in_flight)
