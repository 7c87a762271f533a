"""Centred responses in a layer: statistics of the microbatch, or running ones that are checkpointed."""

import dataclasses
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor, nn

from megatron_compete.routing.centering import ResponseStatistics, response_statistics


class BatchCentering(nn.Module):
    """Centres by the statistics of this microbatch, over the ranks that share it.

    The scores of a token then do not depend on the layout, nor on what other replicas see.
    """

    def __init__(self, groups: ProcessGroupCollection) -> None:
        super().__init__()
        self.group = groups.tp_cp

    def forward(self, responses_TE: Tensor, valid_T: Tensor | None) -> Tensor:
        """Scores [T, E] by which winners are chosen."""
        return self.statistics(responses_TE, valid_T).centre(responses_TE)

    def statistics(self, responses_TE: Tensor, valid_T: Tensor | None) -> ResponseStatistics:
        """Of all tokens on the ranks of `self.group`."""
        return response_statistics(responses_TE, valid_T, self._gather if self.group.size() > 1 else None)

    def _gather(self, vector: Tensor) -> Tensor:
        gathered = vector.new_empty(self.group.size() * vector.shape[0])
        dist.all_gather_into_tensor(gathered, vector.contiguous(), group=self.group)
        return gathered.view(self.group.size(), -1)


class RunningCentering(BatchCentering):
    """Centres by running statistics (`decay` per competing microbatch), the same on all data parallel replicas.

    The running values, of the microbatches before this one, are buffers in the checkpoint. The first microbatch is
    centred by its own; one without a token that counts changes nothing.
    """

    def __init__(self, groups: ProcessGroupCollection, num_experts: int, decay: float) -> None:
        super().__init__(groups)
        self.group = groups.tp_dp_cp
        self.decay = decay
        self.mean: Tensor
        self.variance: Tensor
        self.updates: Tensor
        for name in ("mean", "variance"):
            self.register_buffer(name, torch.zeros(num_experts, dtype=torch.float32))
        self.register_buffer("updates", torch.zeros(1, dtype=torch.float32))

    def forward(self, responses_TE: Tensor, valid_T: Tensor | None) -> Tensor:
        """Scores [T, E]; then the running statistics take in this microbatch."""
        self._keep_fp32()
        batch = self.statistics(responses_TE, valid_T)
        first = self.updates == 0
        used = dataclasses.replace(
            batch,
            mean_E=torch.where(first, batch.mean_E, self.mean),
            variance_E=torch.where(first, batch.variance_E, self.variance),
        )
        has_tokens = batch.count > 0  # a sample may be empty
        for running, before, now in (
            (self.mean, used.mean_E, batch.mean_E),
            (self.variance, used.variance_E, batch.variance_E),
        ):
            running.copy_(torch.where(has_tokens, before.lerp(now, 1 - self.decay), running))
        self.updates += has_tokens
        return used.centre(responses_TE)

    def _keep_fp32(self) -> None:
        """Megatron's Float16Module casts all buffers; these are taken back, as TopKRouter does with its bias."""
        for buffer in self.buffers():
            buffer.data = buffer.data.float()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._keep_fp32()
        super()._load_from_state_dict(*args, **kwargs)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._keep_fp32()
        super()._save_to_state_dict(*args, **kwargs)


def make_centering(kind: str, decay: float, num_experts: int, groups: ProcessGroupCollection) -> BatchCentering | None:
    """The module of `--compete-response-centering`; None for none."""
    if kind == "none":
        return None
    return BatchCentering(groups) if kind == "batch" else RunningCentering(groups, num_experts, decay)
