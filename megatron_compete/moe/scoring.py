"""The scoring pass: every expert's response to every token, without gradient.

Nothing is routed. Tokens are gathered once over the expert group, each rank runs its own experts on them, every output
is reduced to one scalar at once, and the scalars travel home. A rank receives T * H * (group - 1) elements and sends
T * E scalars; an all-ones routing map through the all-to-all dispatcher would move E / group times as much, both ways.
The tokens are walked in chunks, so no tensor of size [T, E, H] or [T, E_local, H] ever exists.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.experts import SequentialMLP
from torch import Tensor

from megatron_compete.routing.responses import Response


@dataclass(frozen=True)
class ExpertGroups:
    """Where the experts of a layer live.

    `tensor_and_expert` orders its ranks with the tensor parallel rank running fastest, as in Megatron's dispatcher.
    """

    expert: dist.ProcessGroup
    tensor: dist.ProcessGroup
    tensor_and_expert: dist.ProcessGroup

    @classmethod
    def of(cls, groups: ProcessGroupCollection) -> "ExpertGroups":
        return cls(expert=groups.ep, tensor=groups.expt_tp, tensor_and_expert=groups.tp_ep)


def score_tokens(
    tokens_TH: Tensor, experts: torch.nn.Module, response: Response, groups: ExpertGroups, chunk_tokens: int
) -> Tensor:
    """Responses of all experts to this rank's tokens.

    Args:
        tokens_TH: this rank's tokens; as many on every rank of the expert group.
        experts: Megatron's module of this rank's experts (SequentialMLP or TEGroupedMLP).
        response: reduces raw expert outputs [..., H] to one scalar each.
        chunk_tokens: tokens of each rank that are gathered and scored at a time.
    Returns:
        fp32 [T, E], experts in global order, without gradient.
    """
    with torch.no_grad():
        chunks = [_score_chunk(chunk, experts, response, groups) for chunk in tokens_TH.split(chunk_tokens)]
        return torch.cat(chunks)


def _score_chunk(tokens_TH: Tensor, experts: torch.nn.Module, response: Response, groups: ExpertGroups) -> Tensor:
    gathered_GH = _gather(tokens_TH, groups.tensor_and_expert)  # G tokens of the whole group
    outputs = (_run_expert(experts, index, gathered_GH) for index in range(_num_local(experts)))
    local = [response(_sum_over_shards(output_GH, groups)) for output_GH in outputs]
    return _send_home(torch.stack(local, dim=-1), groups.expert)


def _num_local(experts: torch.nn.Module) -> int:
    return int(experts.num_local_experts)  # type: ignore[arg-type]


def _run_expert(experts: torch.nn.Module, index: int, tokens_GH: Tensor) -> Tensor:
    """Raw output of one local expert [G, H]; a partial sum where experts are tensor parallel."""
    ones_G = torch.ones(tokens_GH.shape[0], dtype=torch.float32, device=tokens_GH.device)
    if isinstance(experts, SequentialMLP):
        return experts.local_experts[index](tokens_GH, ones_G)[0]
    counts = torch.zeros(_num_local(experts), dtype=torch.int64)
    counts[index] = tokens_GH.shape[0]
    return experts(tokens_GH, counts, ones_G)[0]


def _gather(tokens_TH: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Tokens of all ranks of the group, rank after rank [size * T, H]."""
    if group.size() == 1:
        return tokens_TH
    gathered_GH = tokens_TH.new_empty(group.size() * tokens_TH.shape[0], tokens_TH.shape[1])
    dist.all_gather_into_tensor(gathered_GH, tokens_TH.contiguous(), group=group)
    return gathered_GH


def _sum_over_shards(partial_GH: Tensor, groups: ExpertGroups) -> Tensor:
    """Whole outputs for the tokens of this rank's tensor parallel position, [EP * T, H].

    A reduce-scatter: each tensor parallel rank needs the outputs for the tokens it will send home and no others.
    """
    shards = groups.tensor.size()
    if shards == 1:
        return partial_GH
    tokens = partial_GH.shape[0] // groups.tensor_and_expert.size()
    by_shard = partial_GH.view(groups.expert.size(), shards, tokens, -1).transpose(0, 1).contiguous()
    summed_GH = partial_GH.new_empty(groups.expert.size() * tokens, partial_GH.shape[1])
    dist.reduce_scatter_tensor(summed_GH, by_shard.view(-1, partial_GH.shape[1]), group=groups.tensor)
    return summed_GH


def _send_home(responses: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Responses of local experts to the group's tokens [EP * T, E_local] to those of all experts to ours [T, E]."""
    if group.size() == 1:
        return responses
    received = torch.empty_like(responses)
    dist.all_to_all_single(received, responses.contiguous(), group=group)
    tokens = responses.shape[0] // group.size()
    return received.view(group.size(), tokens, -1).transpose(0, 1).reshape(tokens, -1)
