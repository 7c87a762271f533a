"""Which of a rank's tokens compete, in every way to split a sequence over ranks."""

import dataclasses
import itertools
import types

import numpy as np
import pytest
import torch

from megatron_compete.moe.sample import AllTokens, TokenSample, TokenSampler
from megatron_compete.routing.sample import sample_positions
from tests.moe import layouts
from tests.moe.layouts import EXPERTS, FFN, HIDDEN, Layout
from tests.moe.reference import Weights
from tests.moe.test_layouts import STRONG, UTILITY
from tests.ranks import run_ranks

LENGTH, SEQUENCES = 64, 3


def sampler(fraction: float, tensor: tuple[int, int], context: tuple[int, int]) -> TokenSampler:
    """That of a rank: (size, rank) of its groups."""
    group = lambda size, rank: types.SimpleNamespace(size=lambda: size, rank=lambda: rank)  # noqa: E731
    groups = types.SimpleNamespace(tp=group(*tensor), cp=group(*context))
    return TokenSampler(fraction, types.SimpleNamespace(sequence_parallel=tensor[0] > 1), groups)  # type: ignore[arg-type]


def held_positions(tensor: tuple[int, int], context: tuple[int, int]) -> np.ndarray:
    """Positions of the sequence that a rank holds, in order: zigzag chunks, then a piece of them."""
    size, rank = context
    chunks = np.split(np.arange(LENGTH), 2 * size)
    of_part = np.concatenate([chunks[rank], chunks[2 * size - 1 - rank]])
    return np.split(of_part, tensor[0])[tensor[1]]


@pytest.mark.parametrize(("tensor_size", "context_size"), list(itertools.product((1, 2, 4), (1, 2, 4))))
@pytest.mark.parametrize("fraction", [0.03, 0.25, 0.6])
def test_ranks_hold_parts_of_one_sample(fraction: float, tensor_size: int, context_size: int) -> None:
    for step in range(20):
        found, counts = [], []
        for tensor, context in itertools.product(range(tensor_size), range(context_size)):
            held = held_positions((tensor_size, tensor), (context_size, context))
            sample = sampler(fraction, (tensor_size, tensor), (context_size, context)).draw(
                torch.empty(len(held), SEQUENCES, 2), seed=5, step=step, layer_number=7
            )
            assert isinstance(sample, TokenSample)
            ids = torch.from_numpy(held).repeat_interleave(SEQUENCES)
            by_sequence = sample.take(ids).view(-1, SEQUENCES)
            assert (by_sequence == by_sequence[:, :1]).all()
            found.append(by_sequence[:, 0].numpy())
            counts.append(len(by_sequence))
        expected = sample_positions(fraction, LENGTH, seed=5, step=step, layer_number=7)
        assert (np.sort(np.concatenate(found)) == expected).all()
        if fraction == 0.25 and 2 * context_size * tensor_size <= 4:
            assert len(set(counts)) == 1


def test_values_of_a_sample() -> None:
    sample = TokenSample(torch.tensor([1, 4]), 6)
    values = torch.arange(6.0).unsqueeze(1)
    assert sample.take(values).flatten().tolist() == [1, 4]
    assert sample.put(values, torch.tensor([[7], [8]])).flatten().tolist() == [0, 7, 2, 3, 8, 5]
    valid = torch.tensor([True, True, False, True, False, True])
    assert sample.among(valid).tolist() == [False, True, False, False, False, False]
    assert sample.beside(valid).tolist() == [True, False, False, True, False, True]
    assert sample.among(None).tolist() == [not other for other in sample.beside(None).tolist()]


def test_the_whole_fraction_is_all_tokens_untouched() -> None:
    tokens = sampler(1.0, (2, 0), (2, 1)).draw(torch.empty(8, 2, 4), seed=1, step=0, layer_number=1)
    values = torch.arange(16)
    assert type(tokens) is AllTokens
    assert tokens.take(values) is values and tokens.put(None, values) is values
    assert tokens.among(None) is None and tokens.beside(None) is None


def test_a_sample_may_be_empty() -> None:
    drawn = [
        sampler(0.01, (1, 0), (1, 0)).draw(torch.empty(4, 2, 3), seed=1, step=step, layer_number=1) for step in range(9)
    ]
    empty = next(sample for sample in drawn if isinstance(sample, TokenSample) and len(sample.tokens_N) == 0)
    assert empty.take(torch.empty(8, 5)).shape == (0, 5) and not empty.mask_T.any()


STEPS, FRACTION = 3, 0.6
"""Eight blocks of eight positions: each rank of the layouts below holds whole ones."""
TOKEN_IDS = torch.arange(LENGTH * SEQUENCES).view(SEQUENCES, LENGTH)


def held_by_rank() -> torch.Tensor:
    """Ids [S_local, B] of the tokens that Megatron gives this rank."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import scatter_to_sequence_parallel_region
    from megatron.core.utils import get_batch_on_this_cp_rank

    group = parallel_state.get_context_parallel_group()
    batch = {"tokens": TOKEN_IDS.clone(), "cu_seqlens": None}
    ids = get_batch_on_this_cp_rank(batch, is_hybrid_cp=False, cp_group=group)["tokens"]
    return scatter_to_sequence_parallel_region(ids.T.contiguous())


def scored_on_rank(layout: Layout) -> dict[str, list[list[int]]]:
    """Ids of the tokens that the scoring pass got, by kind and step: inputs carry them."""
    from megatron_compete.moe.scoring import ScoringPass

    layouts.initialize(layout)
    scored: list[list[int]] = []
    score = ScoringPass.__call__

    def spy(self: ScoringPass, tokens_NH: torch.Tensor, *vectors_NH: torch.Tensor) -> torch.Tensor:
        scored.append(tokens_NH[:, 0].long().tolist())
        return score(self, tokens_NH, *vectors_NH)

    ScoringPass.__call__ = spy  # type: ignore[method-assign]
    hidden_states = held_by_rank().unsqueeze(-1).expand(-1, -1, HIDDEN).float()
    found = {}
    for config in (STRONG, UTILITY):
        config, step = dataclasses.replace(config, rate=1.0, token_fraction=FRACTION), 0
        layer = layouts.build_layer(layout, Weights.random(EXPERTS, HIDDEN, FFN), config, lambda: step)  # noqa: B023
        for step in range(STEPS):  # noqa: B007
            layer(hidden_states.clone().requires_grad_())[0].sum().backward()
        found[config.kind], scored = scored, []
    return found


@pytest.mark.parametrize(
    "layout",
    [
        Layout(), Layout(world=2), Layout(world=2, tp=2, ep=2), Layout(world=2, cp=2, etp=2), Layout(world=4, cp=4),
        Layout(world=4, tp=4, ep=4), Layout(world=4, tp=2, cp=2, ep=2, etp=2),
    ],
    ids=str,
)  # fmt: skip
def test_the_same_tokens_compete_in_every_layout(layout: Layout) -> None:
    per_rank = run_ranks(layout.world, scored_on_rank, layout)
    for kind, step in itertools.product(("response", "utility"), range(STEPS)):
        positions = sample_positions(FRACTION, LENGTH, seed=STRONG.seed, step=step, layer_number=1)
        expected = sorted(TOKEN_IDS[:, positions].flatten().tolist())
        for replica in range(layout.dp):
            ranks = [rank for rank in range(layout.world) if layout.coordinates(rank)[0] == replica]
            scored = [per_rank[rank][kind][step] for rank in ranks]
            assert sorted(itertools.chain(*scored)) == expected, (kind, step)
            assert len({len(ids) for ids in scored}) == 1
