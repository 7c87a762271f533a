"""How tokens, outputs and scores travel between the ranks that hold one layer's experts.

G counts the tokens of the whole group: one block of T per rank, in the order of `tensor_and_expert`, whose tensor
parallel rank runs fastest (as in Megatron's dispatcher). P counts the tokens of the ranks at this rank's tensor
parallel position: one block of T per expert parallel rank.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor


@dataclass(frozen=True)
class Gathering:
    """An all-gather on its way."""

    gathered: Tensor
    source: Tensor
    """Kept alive while it is read."""
    work: dist.Work | None

    def wait(self) -> Tensor:
        """The gathered values; on CUDA the current stream waits, not the host."""
        if self.work is not None:
            self.work.wait()
        return self.gathered


@dataclass(frozen=True)
class ExpertGroups:
    """The process groups of a layer's experts."""

    expert: dist.ProcessGroup
    tensor: dist.ProcessGroup
    tensor_and_expert: dist.ProcessGroup

    @classmethod
    def of(cls, groups: ProcessGroupCollection) -> "ExpertGroups":
        """The groups of Megatron's collection."""
        return cls(expert=groups.ep, tensor=groups.expt_tp, tensor_and_expert=groups.tp_ep)

    def most_tokens(self, num_tokens: int, device: torch.device) -> int:
        """The largest number of tokens on a rank of the group."""
        if self.tensor_and_expert.size() == 1:
            return num_tokens
        most = torch.tensor([num_tokens], device=device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX, group=self.tensor_and_expert)
        return int(most.item())

    def gather_tokens(self, values_TH: Tensor) -> Tensor:
        """[T, H] of every rank of the group to [G, H]."""
        return self.start_gather_tokens(values_TH).wait()

    def start_gather_tokens(self, values_TH: Tensor) -> Gathering:
        """`gather_tokens` without waiting for it."""
        return _start_all_gather(values_TH, self.tensor_and_expert)

    def start_gather_position(self, values_TH: Tensor) -> Gathering:
        """[T, H] of the ranks at this tensor parallel position to [P, H], without waiting for it."""
        return _start_all_gather(values_TH, self.expert)

    def scatter_tokens(self, values_GH: Tensor) -> Tensor:
        """Sum over the group, each rank its own tokens: the transpose of `gather_tokens`, [G, H] to [T, H]."""
        return _reduce_scatter(values_GH, self.tensor_and_expert)

    def sum_shards(self, partial_GH: Tensor) -> Tensor:
        """Partial outputs of tensor parallel experts [G, H] to whole ones for this position's tokens [P, H].

        A reduce-scatter: a rank needs the outputs for just the tokens whose scores it sends home.
        """
        if self.tensor.size() == 1:
            return partial_GH
        hidden = partial_GH.shape[1]
        by_shard = partial_GH.view(self.expert.size(), self.tensor.size(), -1, hidden).transpose(0, 1).contiguous()
        return _reduce_scatter(by_shard.view(-1, hidden), self.tensor)

    def spread_to_shards(self, whole_PH: Tensor) -> Tensor:
        """The transpose of `sum_shards`: [P, H] of every tensor parallel position to [G, H]."""
        if self.tensor.size() == 1:
            return whole_PH
        hidden = whole_PH.shape[1]
        by_shard = _all_gather(whole_PH, self.tensor).view(self.tensor.size(), self.expert.size(), -1, hidden)
        return by_shard.transpose(0, 1).reshape(-1, hidden)

    def send_home(self, scores: Tensor) -> Tensor:
        """Scores of local experts for this position's tokens [P, E_local] to those of all experts for ours [T, E]."""
        size = self.expert.size()
        if size == 1:
            return scores
        received = _all_to_all(scores, self.expert).view(size, scores.shape[0] // size, scores.shape[1])
        return received.transpose(0, 1).reshape(scores.shape[0] // size, size * scores.shape[1])

    def send_out(self, scores_TE: Tensor) -> Tensor:
        """The transpose of `send_home`: [T, E] to [P, E_local]."""
        size = self.expert.size()
        if size == 1:
            return scores_TE
        tokens, experts = scores_TE.shape
        by_rank = scores_TE.view(tokens, size, experts // size).transpose(0, 1).contiguous()
        return _all_to_all(by_rank.view(-1, experts // size), self.expert)


def _start_all_gather(values: Tensor, group: dist.ProcessGroup) -> Gathering:
    if group.size() == 1:
        return Gathering(values, values, None)
    gathered = values.new_empty(group.size() * values.shape[0], *values.shape[1:])
    source = values.contiguous()
    return Gathering(gathered, source, dist.all_gather_into_tensor(gathered, source, group=group, async_op=True))


def _all_gather(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    return _start_all_gather(values, group).wait()


def _reduce_scatter(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    if group.size() == 1:
        return values
    mine = values.new_empty(values.shape[0] // group.size(), *values.shape[1:])
    dist.reduce_scatter_tensor(mine, values.contiguous(), group=group)
    return mine


def _all_to_all(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    received = torch.empty_like(values, memory_format=torch.contiguous_format)
    dist.all_to_all_single(received, values.contiguous(), group=group)
    return received
