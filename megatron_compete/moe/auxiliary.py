"""How a loss that is a mean over this rank's tokens joins the training loss."""

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from torch import Tensor


class AuxiliaryLoss:
    """Attaches losses so that their gradient is that of the mean over the whole microbatch, in every layout.

    A microbatch's tokens are split over the tensor (sequence) and context parallel ranks, and Megatron sums gradients
    over them, so a mean over this rank's valid tokens counts by their share in the microbatch's. Under
    `--calculate-per-token-loss` Megatron divides all gradients by the tokens of the global batch at the end;
    multiplying by this rank's tokens cancels that, as in `TopKRouter.attach_and_log_load_balancing_loss`.
    """

    def __init__(self, groups: ProcessGroupCollection, per_token: bool) -> None:
        self.group = groups.tp_cp
        self.per_token = per_token

    def attach(
        self, activation: Tensor, loss: Tensor, valid_T: Tensor | None, num_tokens: int, part_T: Tensor | None = None
    ) -> Tensor:
        """`activation` unchanged; its backward pass also sends the gradient of `loss`.

        Args:
            loss: mean over this rank's valid tokens, or over a part of them.
            valid_T: mask of the tokens that count; None for all `num_tokens`.
            part_T: mask of those that `loss` is a mean of; None for all valid ones.
        """
        if not self.per_token:
            weight = self._share(valid_T if part_T is None else part_T)
        elif part_T is None:
            weight = num_tokens if valid_T is None else valid_T.sum()
        else:
            tokens = torch.tensor(num_tokens, device=part_T.device) if valid_T is None else valid_T.sum()
            weight = self._share(part_T) * self._sum_over_ranks(tokens)
        return MoEAuxLossAutoScaler.apply(activation, loss * weight)

    def mean_over_ranks(self, valid_T: Tensor | None) -> Callable[[Tensor], Tensor]:
        """Averages values over the valid tokens of the ranks that share a microbatch.

        They run in lockstep, so this cannot hold up a pipeline.
        """

        def average(values: Tensor) -> Tensor:
            return self._sum_over_ranks(values * self._share(valid_T))

        return average

    def _share(self, valid_T: Tensor | None) -> Tensor | float:
        """This rank's part of the microbatch's valid tokens; without a mask all ranks hold as many."""
        if valid_T is None or self.group.size() == 1:
            return 1 / self.group.size()
        count = valid_T.sum().float()
        return count / self._sum_over_ranks(count).clamp_min(1.0)

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        if self.group.size() == 1:
            return values
        values = values.clone()
        torch.distributed.all_reduce(values, group=self.group)
        return values


class AlsoReaching(torch.autograd.Function):
    """Values, unchanged, whose backward pass also reaches others, with a gradient of zero: losses that are attached to
    those send theirs on."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, others: Tensor) -> Tensor:
        ctx.others = others.shape, others.dtype
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        shape, dtype = ctx.others
        return grad_outputs[0], torch.zeros(shape, dtype=dtype, device=grad_outputs[0].device)
