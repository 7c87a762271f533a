"""The scoring pass: every expert's response to every token, without gradient.

Nothing is routed. Tokens are gathered once over the expert group, each rank runs its own experts on them, every output
is reduced to one scalar at once, and the scalars travel home. A rank receives T * H * (group - 1) elements and sends
T * E scalars; an all-ones routing map through the all-to-all dispatcher would move E / group times as much, both ways.
The tokens are walked in chunks, so no tensor of size [T, E, H] or [T, E_local, H] ever exists.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from megatron.core.transformer.moe.experts import SequentialMLP
from torch import Tensor

from megatron_compete.moe.expert_group import ExpertGroups

Reduction = Callable[..., Tensor]
"""Reduces expert outputs [P, H], and the vectors [P, H] given with the tokens if any, to scalars, fp32 [P]."""


def score_tokens(
    tokens_TH: Tensor,
    experts: torch.nn.Module,
    reduction: Reduction,
    groups: ExpertGroups,
    chunk_tokens: int,
    *vectors_TH: Tensor,
) -> Tensor:
    """Scores of all experts for this rank's tokens.

    Args:
        tokens_TH: this rank's tokens; ranks of the expert group may hold different numbers, none included.
        experts: Megatron's module of this rank's experts (SequentialMLP or TEGroupedMLP).
        reduction: a response, or any other reduction of raw expert outputs to scalars.
        chunk_tokens: tokens of each rank that are gathered and scored at a time.
        vectors_TH: one vector per token for a reduction that needs it, such as `y . v`.
    Returns:
        fp32 [T, E], experts in global order, without gradient.
    """
    with torch.no_grad():
        padded = padded_chunks(groups, chunk_tokens, tokens_TH, *vectors_TH)
        chunks = [_score_chunk(experts, reduction, groups, *chunk) for chunk in padded]
        return torch.cat(chunks)[: tokens_TH.shape[0]]


def padded_chunks(groups: ExpertGroups, chunk_tokens: int, *values_TH: Tensor) -> list[tuple[Tensor, ...]]:
    """Chunks of the values' tokens, as many and as large on every rank: shorter ranks pad with zeros."""
    num_tokens = values_TH[0].shape[0]
    missing = groups.most_tokens(num_tokens, values_TH[0].device) - num_tokens
    padded = [F.pad(values, (0, 0, 0, missing)) if missing else values for values in values_TH]
    return list(zip(*(values.split(chunk_tokens) for values in padded)))


def _score_chunk(
    experts: torch.nn.Module, reduction: Reduction, groups: ExpertGroups, tokens_TH: Tensor, *vectors_TH: Tensor
) -> Tensor:
    tokens_GH = groups.gather_tokens(tokens_TH)
    vectors_PH = [groups.gather_position(vectors) for vectors in vectors_TH]
    outputs = (run_expert(experts, index, tokens_GH) for index in range(num_local_experts(experts)))
    local = [reduction(groups.sum_shards(output_GH), *vectors_PH) for output_GH in outputs]
    return groups.send_home(torch.stack(local, dim=-1))


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
