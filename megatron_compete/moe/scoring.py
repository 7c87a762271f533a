"""The scoring pass: one score of every expert for every token, without gradient.

Nothing is routed. Tokens are gathered once over the expert group, each rank runs its own experts on them, every output
is reduced to one scalar at once (a response, or y . v), and the scalars are sent back to the tokens' ranks. A rank
receives T * H * (group - 1) elements and sends T * E scalars; an all-ones routing map through the all-to-all dispatcher
would move E / group times as much, both ways. Tokens are taken in chunks, so no tensor of size [T, E, H] or
[T, E_local, H] ever exists. While one chunk is scored, the next one is being gathered.

H is the width that experts see: the hidden size, or that of a latent MoE (`moe/latent.py`).

T tokens of this rank, G of the whole expert group, P of the ranks at this rank's expert tensor parallel position
(`moe/expert_group.py`), E experts, E_local of this rank, H hidden size.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_compete.config import CompeteConfig
from megatron_compete.moe import direct
from megatron_compete.moe.expert_group import ExpertGroups, Gathering
from megatron_compete.moe.fp8 import without_fp8
from megatron_compete.moe.kernels.choice import check_score_device, choose_fused_scorer
from megatron_compete.moe.latent import LatentProjections
from megatron_compete.routing.responses import SCORED

Reduction = Callable[..., Tensor]
"""Reduces expert outputs [P, H], and the vectors [P, H] given with the tokens if any, to scalars, fp32 [P]."""

ScoreChunk = Callable[..., Tensor]
"""Scores fp32 [P, E_local] by this rank's experts of gathered tokens [G, H], and the vectors [P, H] given with them."""


class ScoringPass:
    """Scores of all of a layer's experts, reduced as one kind of competition needs them.

    Args:
        compete: its settings.
        config: Megatron's, of the layer.
        experts: Megatron's module of this rank's experts (SequentialMLP or TEGroupedMLP).
        groups: the layer's.
        reduction: a response, or another reduction of raw expert outputs, and of a vector per token, to scalars.
        latent: the layer's projections, where its experts see projected tokens.
    Raises:
        CompeteError: fused kernels are asked for and this process cannot run them.
    """

    def __init__(
        self,
        compete: CompeteConfig,
        config: TransformerConfig,
        experts: torch.nn.Module,
        groups: ExpertGroups,
        reduction: Reduction,
        latent: LatentProjections | None = None,
    ) -> None:
        check_score_device(compete.score_kernel)
        self.compete = compete
        self.config = config
        self.experts = experts
        self.groups = groups
        self.reduction = reduction
        self.latent = latent
        self._scorer: Scorer | None = None

    def __call__(self, tokens_TH: Tensor, *vectors_TH: Tensor) -> Tensor:
        """Scores fp32 [T, E] of this rank's tokens, without gradient; a collective of the expert group.

        Args:
            tokens_TH: the layer's input.
            vectors_TH: gradients of the layer's output, for a reduction that takes them.
        Raises:
            CompeteError: at the first pass, fused kernels are asked for and do not cover the experts as they are.
        """
        if self._scorer is None:
            self._scorer = choose_scorer(
                self.compete.score_kernel, self.config, self.experts, self.reduction, self.groups, tokens_TH
            )
        projections = () if self.latent is None else self.latent.modules
        with torch.no_grad(), without_fp8(self.config, self.experts, *projections):
            if self.latent is not None:  # narrower, so it is projected before it is gathered
                tokens_TH = self.latent.tokens(tokens_TH)
                vectors_TH = tuple(self.latent.gradients(vector_TH) for vector_TH in vectors_TH)
            return score_tokens(tokens_TH, self._scorer, self.groups, self.compete.score_chunk_tokens, *vectors_TH)


def score_tokens(
    tokens_TH: Tensor, scorer: "Scorer", groups: ExpertGroups, chunk_tokens: int, *vectors_TH: Tensor
) -> Tensor:
    """Scores of all experts for this rank's tokens.

    Args:
        tokens_TH: this rank's tokens; ranks of the expert group may hold different numbers, none included.
        scorer: how this rank's experts are run.
        chunk_tokens: tokens of each rank that are gathered and scored at a time.
        vectors_TH: one vector per token for a reduction that needs it, such as `y . v`.
    Returns:
        fp32 [T, E], experts in global order, without gradient.
    """
    with torch.no_grad():
        score_chunk = scorer.start()
        chunks = padded_chunks(groups, chunk_tokens, tokens_TH, *vectors_TH)
        gathered = _gathered(groups, chunks)
        scores = [groups.send_home(score_chunk(tokens_GH, *vectors_PH)) for tokens_GH, *vectors_PH in gathered]
        return torch.cat(scores)[: tokens_TH.shape[0]]


def padded_chunks(groups: ExpertGroups, chunk_tokens: int, *values_TH: Tensor) -> list[tuple[Tensor, ...]]:
    """Chunks of the values' tokens, as many and as large on every rank: shorter ranks pad with zeros."""
    num_tokens = values_TH[0].shape[0]
    missing = groups.most_tokens(num_tokens, values_TH[0].device) - num_tokens
    padded = [F.pad(values, (0, 0, 0, missing)) if missing else values for values in values_TH]
    return list(zip(*(values.split(chunk_tokens) for values in padded)))


def _gathered(groups: ExpertGroups, chunks: list[tuple[Tensor, ...]]) -> Iterator[list[Tensor]]:
    """Tokens [G, H] and vectors [P, H] of each chunk.

    A chunk's gathering starts when the one before it has arrived, so no more than two are held. NCCL runs it on a
    stream of its own; all ranks start and score in the same order, so collectives match on all of them.
    """
    ahead = _start_gathering(groups, chunks[0])
    for following in [*chunks[1:], None]:
        arrived = [gathering.wait() for gathering in ahead]
        ahead = [] if following is None else _start_gathering(groups, following)
        yield arrived


def _start_gathering(groups: ExpertGroups, chunk: tuple[Tensor, ...]) -> list[Gathering]:
    tokens_TH, *vectors_TH = chunk
    return [groups.start_gather_tokens(tokens_TH), *(groups.start_gather_position(v) for v in vectors_TH)]


class Scorer(Protocol):
    """A way to run this rank's experts on gathered tokens: `kernels.scorer.FusedScorer`, `DirectScorer`, `PlainScorer`."""

    def start(self) -> ScoreChunk:
        """Begin a pass; what it prepares lives as long as the result."""


def choose_scorer(
    choice: str,
    config: TransformerConfig,
    experts: torch.nn.Module,
    reduction: Reduction,
    groups: ExpertGroups,
    tokens_TH: Tensor,
) -> Scorer:
    """The scorer of `--compete-score-kernel`, decided by what a layer meets at its first pass.

    Raises:
        CompeteError: fused kernels are asked for and cannot be used, with the reason.
    """
    fused = choose_fused_scorer(choice, config, experts, reduction, tokens_TH)
    reduction = SCORED.get(reduction, reduction)
    if fused is None and choice == "auto" and direct.covers(config, experts):
        return direct.DirectScorer(config, experts, reduction, groups)
    return fused or PlainScorer(experts, reduction, groups)


class PlainScorer:
    """Runs Megatron's expert modules one at a time; covers whatever they can do."""

    def __init__(self, experts: torch.nn.Module, reduction: Reduction, groups: ExpertGroups) -> None:
        self.experts = experts
        self.reduction = reduction
        self.groups = groups

    def start(self) -> ScoreChunk:
        """Nothing to prepare."""
        return self._score_chunk

    def _score_chunk(self, tokens_GH: Tensor, *vectors_PH: Tensor) -> Tensor:
        outputs = (run_expert(self.experts, index, tokens_GH) for index in range(num_local_experts(self.experts)))
        local = [self.reduction(self.groups.sum_shards(output_GH), *vectors_PH) for output_GH in outputs]
        return torch.stack(local, dim=-1)


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
