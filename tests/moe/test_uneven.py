"""Ranks with more, fewer and no tokens, experts that win all or nothing, and padding, against the dense reference."""

import dataclasses

import pytest
import torch

from tests.moe import layouts
from tests.moe.layouts import BATCH, EXPERTS, FFN, HIDDEN, Layout, rest_is_slow
from tests.moe.reference import Weights
from tests.moe.steps import Batch, Case, Microbatch, check, random_batch
from tests.moe.test_layouts import CASES, OPTIONS
from tests.ranks import run_rank

UNEVEN = [
    Layout(world=2, ep=2),
    Layout(world=2, etp=2),
    Layout(world=4, ep=4),
    Layout(world=4, ep=2, etp=2),
    Layout(world=4, tp=2, ep=4),
    Layout(world=4, tp=2, ep=2, etp=2),
    Layout(world=4, cp=2, ep=4),
    Layout(world=4, tp=2, ep=4, per_token=True),
]
COVERING = [UNEVEN[0], UNEVEN[5], UNEVEN[6], UNEVEN[7]]
"""In `make test`: each of DP, TP, CP, EP and ETP above 1, and division by tokens at the end."""
COMPETING = {name: case for name, case in CASES.items() if case.competes}


def batch_of_lengths(layout: Layout, *lengths: int) -> Batch:
    """One microbatch per data parallel rank, of these sequence lengths in turn."""
    return [[Microbatch.random(lengths[rank % len(lengths)], BATCH, seed=50 + rank)] for rank in range(layout.dp)]


@pytest.mark.parametrize("layout", rest_is_slow(UNEVEN, COVERING), ids=str)
def test_ranks_with_different_numbers_of_tokens(layout: Layout) -> None:
    check(layout, batch_of_lengths(layout, 4, 12), COMPETING)


@pytest.mark.parametrize("layout", rest_is_slow([at for at in UNEVEN if at.cp == 1], COVERING), ids=str)
def test_a_rank_without_tokens(layout: Layout) -> None:
    check(layout, batch_of_lengths(layout, 8, 0), COMPETING)


@pytest.mark.parametrize("layout", [Layout(), Layout(world=2, ep=2), Layout(world=2, tp=2, etp=2)], ids=str)
def test_no_tokens_at_all(layout: Layout) -> None:
    check(layout, batch_of_lengths(layout, 0), COMPETING)


def gating_of_no_tokens() -> str:
    from megatron.core.transformer.moe.router import TopKRouter

    layouts.initialize(Layout())
    layer = layouts.build_layer(Layout(), Weights.random(EXPERTS, HIDDEN, FFN), CASES["normal"].config)
    try:
        TopKRouter.gating(layer.router, torch.zeros(0, BATCH, HIDDEN))
    except RuntimeError as error:
        return str(error)
    return ""


def test_megatron_still_refuses_zero_tokens() -> None:
    assert "cannot reshape tensor of 0 elements" in run_rank(gating_of_no_tokens), "drop logits_of_no_tokens"


@pytest.mark.parametrize("loud", [(0, 1, 2), (1, 4, 7)], ids=["first-ep-rank", "spread"])
@pytest.mark.parametrize("layout", [Layout(), Layout(world=2, ep=2), Layout(world=4, tp=2, ep=2, etp=2)], ids=str)
def test_the_same_experts_win_every_token(layout: Layout, loud: tuple[int, ...]) -> None:
    """Their outputs are large enough to win by any response; the five others get nothing, nor does an EP rank."""
    weights = Weights.random(EXPERTS, HIDDEN, FFN)
    quiet = [expert for expert in range(EXPERTS) if expert not in loud]
    weights.fc2[quiet] *= 0.01
    config = dataclasses.replace(OPTIONS, response="l2", response_centering="none")
    cases = {"l2": dataclasses.replace(COMPETING["l2"], winners=loud), "options": Case(config, winners=loud)}
    check(layout, random_batch(layout, 8, BATCH), cases, weights)


def padded(sequence: int, seed: int, lengths: list[int]) -> Microbatch:
    """Sequences of these lengths, padded at the end; a padding token has no part in the task's loss."""
    microbatch = Microbatch.random(sequence, len(lengths), seed)
    padding = torch.arange(sequence)[None] >= torch.tensor(lengths)[:, None]
    cotangents = microbatch.cotangents * ~padding.T[..., None]
    return Microbatch(microbatch.tokens, cotangents, padding)


PADDED = [
    Layout(),
    Layout(world=2),
    Layout(world=2, ep=2),
    Layout(world=2, tp=2),
    Layout(world=2, cp=2),
    Layout(world=4, tp=2, ep=2, etp=2),
    Layout(world=2, ep=2, per_token=True),
    Layout(world=2, tp=2, per_token=True),
    Layout(world=2, cp=2, per_token=True),
]


def spread_padding(sequence: int, seed: int, of_batch: int, parts: int) -> Microbatch:
    """Every part of the sequence that a rank holds has the same number of padding tokens."""
    microbatch = Microbatch.random(sequence, of_batch, seed)
    padding = torch.zeros(of_batch, parts, sequence // parts, dtype=torch.bool)
    padding[:, :, -1] = True
    padding = padding.view(of_batch, sequence)
    return Microbatch(microbatch.tokens, microbatch.cotangents * ~padding.T[..., None], padding)


@pytest.mark.parametrize("layout", PADDED, ids=str)
def test_losses_ignore_padding(layout: Layout) -> None:
    """In one microbatch spread evenly over ranks, in the other so that ranks hold different numbers, one of them none."""
    parts = layout.tp * layout.cp
    batch = [[spread_padding(8, rank, BATCH, parts), padded(8, 9 + rank, [4, 2])] for rank in range(layout.dp)]
    check(layout, batch, CASES)
