"""The scoring pass: every expert's response to every token, without gradient.

Nothing is routed. Tokens are gathered once over the expert group, each rank runs its own experts on them, every output
is reduced to one scalar at once, and the scalars travel home. A rank receives T * H * (group - 1) elements and sends
T * E scalars; an all-ones routing map through the all-to-all dispatcher would move E / group times as much, both ways.
The tokens are walked in chunks, so no tensor of size [T, E, H] or [T, E_local, H] ever exists. While one chunk is
scored, the next one's tokens are on their way.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from megatron.core.transformer.moe.experts import SequentialMLP
from torch import Tensor

from megatron_compete.moe.expert_group import ExpertGroups, Gathering

Reduction = Callable[..., Tensor]
"""Reduces expert outputs [P, H], and the vectors [P, H] given with the tokens if any, to scalars, fp32 [P]."""


ScoreChunk = Callable[..., Tensor]
"""Responses fp32 [P, E_local] of this rank's experts to gathered tokens [G, H], and the vectors [P, H] given with them."""


class Scorer(Protocol):
    """A way to run this rank's experts on gathered tokens."""

    def start(self) -> ScoreChunk:
        """Begin a pass; what it prepares lives as long as the result."""


class PlainScorer:
    """Runs Megatron's expert modules one at a time; covers whatever they can do.

    Args:
        experts: Megatron's module of this rank's experts (SequentialMLP or TEGroupedMLP).
        reduction: a response, or any other reduction of raw expert outputs to scalars.
    """

    def __init__(self, experts: torch.nn.Module, reduction: Reduction, groups: ExpertGroups) -> None:
        self.experts = experts
        self.reduction = reduction
        self.groups = groups

    def start(self) -> ScoreChunk:
        """Nothing to prepare."""
        return self._score

    def _score(self, tokens_GH: Tensor, *vectors_PH: Tensor) -> Tensor:
        outputs = (run_expert(self.experts, index, tokens_GH) for index in range(num_local_experts(self.experts)))
        local = [self.reduction(self.groups.sum_shards(output_GH), *vectors_PH) for output_GH in outputs]
        return torch.stack(local, dim=-1)


def score_tokens(
    tokens_TH: Tensor,
    experts: torch.nn.Module,
    reduction: Reduction,
    groups: ExpertGroups,
    chunk_tokens: int,
    *vectors_TH: Tensor,
    scorer: Scorer | None = None,
    overlap: bool = True,
) -> Tensor:
    """Scores of all experts for this rank's tokens.

    Args:
        tokens_TH: this rank's tokens; ranks of the expert group may hold different numbers, none included.
        experts: Megatron's module of this rank's experts (SequentialMLP or TEGroupedMLP).
        reduction: a response, or any other reduction of raw expert outputs to scalars.
        chunk_tokens: tokens of each rank that are gathered and scored at a time.
        vectors_TH: one vector per token for a reduction that needs it, such as `y . v`.
        scorer: another way to get what `experts` and `reduction` say; the modules themselves by default.
        overlap: gather the next chunk while this one is scored. The result is the same, bit for bit.
    Returns:
        fp32 [T, E], experts in global order, without gradient.
    """
    with torch.no_grad():
        score = (scorer or PlainScorer(experts, reduction, groups)).start()
        chunks = padded_chunks(groups, chunk_tokens, tokens_TH, *vectors_TH)
        gathered = _gathered(groups, chunks, overlap)
        scores = [groups.send_home(score(tokens_GH, *vectors_PH)) for tokens_GH, *vectors_PH in gathered]
        return torch.cat(scores)[: tokens_TH.shape[0]]


def padded_chunks(groups: ExpertGroups, chunk_tokens: int, *values_TH: Tensor) -> list[tuple[Tensor, ...]]:
    """Chunks of the values' tokens, as many and as large on every rank: shorter ranks pad with zeros."""
    num_tokens = values_TH[0].shape[0]
    missing = groups.most_tokens(num_tokens, values_TH[0].device) - num_tokens
    padded = [F.pad(values, (0, 0, 0, missing)) if missing else values for values in values_TH]
    return list(zip(*(values.split(chunk_tokens) for values in padded)))


def _gathered(groups: ExpertGroups, chunks: list[tuple[Tensor, ...]], overlap: bool) -> Iterator[list[Tensor]]:
    """Tokens [G, H] and vectors [P, H] of each chunk.

    A chunk's gathering starts when the one before it is there, so no more than two are held. NCCL runs it on a stream
    of its own; all ranks start and score in the same order, so collectives meet in the same order everywhere.
    """
    ahead = _start_gathering(groups, chunks[0])
    for following in [*chunks[1:], None]:
        here = [gathering.wait() for gathering in ahead]
        if following is None:
            yield here
        elif overlap:
            ahead = _start_gathering(groups, following)
            yield here
        else:
            yield here
            ahead = _start_gathering(groups, following)


def _start_gathering(groups: ExpertGroups, chunk: tuple[Tensor, ...]) -> list[Gathering]:
    tokens_TH, *vectors_TH = chunk
    return [groups.start_gather_tokens(tokens_TH), *(groups.start_gather_position(v) for v in vectors_TH)]


def num_local_experts(experts: torch.nn.Module) -> int:
    """Experts that this rank holds."""
    return int(experts.num_local_experts)  # type: ignore[arg-type]


def run_expert(experts: torch.nn.Module, index: int, tokens_GH: Tensor) -> Tensor:
    """Raw output of one local expert [G, H]; a partial sum where experts are tensor parallel."""
    ones_G = torch.ones(tokens_GH.shape[0], dtype=torch.float32, device=tokens_GH.device)
    if isinstance(experts, SequentialMLP):
        return experts.local_experts[index](tokens_GH, ones_G)[0]
    counts = torch.zeros(num_local_experts(experts), dtype=torch.int64)
    counts[index] = tokens_GH.shape[0]
    return experts(tokens_GH, counts, ones_G)[0]
