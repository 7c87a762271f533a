"""bf16 weights and activations with an fp32 router, against the fp64 reference on the same (rounded) weights."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.moe import layouts
from tests.moe.layouts import BATCH, EXPERTS, FFN, HIDDEN, SEQUENCE, WINNERS, Layout
from tests.moe.reference import Weights, competing_step, expert_outputs, responses, utility_step
from tests.moe.steps import (
    Batch,
    Result,
    assert_equal_to_reference,
    random_batch,
    reference_step,
    shard_of_rank,
    train_step,
)
from tests.moe.test_layouts import CASES
from tests.ranks import run_ranks

BF16: dict[str, Any] = dict(
    bf16=True, params_dtype=torch.bfloat16, pipeline_dtype=torch.bfloat16, moe_router_dtype="fp32"
)
EPSILON = 2.0**-8
"""Rounding to bf16 changes a number by at most this part of it (8 bits of significand)."""
TOLERANCE = 4 * EPSILON
"""A value goes through four roundings on its way (fc1, activation, fc2, sum), which add up at worst; a gradient through
as many again."""

LAYOUTS = [Layout(), Layout(world=2, ep=2), Layout(world=4, tp=2, ep=2, etp=2)]


def rounded_weights() -> Weights:
    return Weights.random(EXPERTS, HIDDEN, FFN).map(lambda weight: weight.bfloat16())


def rounded_batch(layout: Layout) -> Batch:
    return [[whole.to(torch.bfloat16) for whole in mine] for mine in random_batch(layout, SEQUENCE, BATCH)]


def train_in_bf16(layout: Layout, name: str) -> tuple[Result, list[Tensor], list[Tensor]]:
    """Results, and the responses and winners of each microbatch."""
    from megatron_compete.moe import layer as layer_module

    layouts.initialize(layout)
    case = CASES[name]
    layer = layouts.build_layer(layout, rounded_weights(), case.config, case.current_step, **BF16)
    assert all(parameter.dtype == torch.bfloat16 for parameter in layer.parameters())
    scored, chosen = [], []
    choose = layer_module.choose_winners

    def spy(responses_TE: Tensor, num_winners: int) -> Tensor:
        scored.append(responses_TE)
        chosen.append(choose(responses_TE, num_winners))
        return chosen[-1]

    layer_module.choose_winners = spy
    return train_step(layer, layout, rounded_batch(layout)), scored, chosen


@pytest.mark.parametrize("name", ["softplus", "l2"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_bf16_is_the_reference_up_to_rounding(layout: Layout, name: str) -> None:
    per_rank = run_ranks(layout.world, train_in_bf16, layout, name)
    batch, weights, config = rounded_batch(layout), rounded_weights(), CASES[name].config
    flipped = 0
    for rank, (_, scored, chosen) in enumerate(per_rank):
        for whole, actual, winners in zip(batch[layout.coordinates(rank)[0]], scored, chosen, strict=True):
            tokens = shard_of_rank(whole, layout, rank).tokens.double().reshape(-1, HIDDEN)
            flipped += check_winners(responses(expert_outputs(tokens, weights.double()), config), actual, winners)
    assert flipped <= 0.1 * sum(len(winners) for _, _, chosen in per_rank for winners in chosen)

    # With the same winners the rest is continuous in the rounding.
    winners_in_order = winners_of_microbatches(layout, [chosen for _, _, chosen in per_rank])
    expected = reference_step(
        batch, weights, layout, config, lambda *a: competing_step(*a, winners=next(winners_in_order))
    )
    assert_equal_to_reference([result for result, _, _ in per_rank], expected, layout, 2 * TOLERANCE)


def train_by_utility(layout: Layout, name: str) -> Result:
    layouts.initialize(layout)
    case = CASES[name]
    layer = layouts.build_layer(layout, rounded_weights(), case.config, case.current_step, **BF16)
    return train_step(layer, layout, rounded_batch(layout))


@pytest.mark.parametrize("name", ["utility", "utility-missing"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_utilities_in_bf16_are_the_reference_up_to_rounding(layout: Layout, name: str) -> None:
    """The router selects in fp32, from the same inputs."""
    per_rank = run_ranks(layout.world, train_by_utility, layout, name)
    expected = reference_step(rounded_batch(layout), rounded_weights(), layout, CASES[name].config, utility_step)
    assert_equal_to_reference(per_rank, expected, layout, 2 * TOLERANCE)


def winners_of_microbatches(layout: Layout, chosen: list[list[Tensor]]) -> Iterator[Tensor]:
    """[T, K] of whole microbatches, in the order in which the reference goes through them."""
    sharing = layout.tp * layout.cp
    for first in range(0, layout.world, sharing):
        for shards in zip(*chosen[first : first + sharing], strict=True):
            yield torch.cat(shards)


def check_winners(exact: Tensor, actual: Tensor, winners: Tensor) -> int:
    """Responses come in fp32 and within rounding; a token whose winners differ has its margin within that error too."""
    assert actual.dtype == torch.float32
    error = (actual - exact).abs()
    assert (error <= TOLERANCE * exact.abs().max()).all()
    best = exact.topk(WINNERS + 1)
    margin = best.values[:, -2] - best.values[:, -1]
    differs = (best.indices[:, :-1].sort().values != winners).any(dim=1)
    assert (margin[differs] <= 2 * error.amax(dim=1)[differs]).all()
    return int(differs.sum())
