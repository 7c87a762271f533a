"""How a loss that is a mean over this rank's tokens joins the training loss."""

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from torch import Tensor


class AuxiliaryLoss:
    """Attaches losses so that their gradient is that of the mean over the whole microbatch, in every layout.

    A microbatch's tokens are split over the tensor (sequence) and context parallel ranks, and Megatron sums gradients
    over them, so a mean over this rank's tokens counts 1 / size. Under `--calculate-per-token-loss` Megatron divides
    all gradients by the tokens of the global batch at the end; multiplying by this rank's tokens and by the size
    cancels that, as in `TopKRouter.attach_and_log_load_balancing_loss`.
    """

    def __init__(self, groups: ProcessGroupCollection, per_token: bool) -> None:
        self.group = groups.tp_cp
        self.per_token = per_token

    def attach(self, activation: Tensor, loss: Tensor, valid_T: Tensor | None, num_tokens: int) -> Tensor:
        """`activation` unchanged; its backward pass also sends the gradient of `loss`.

        Args:
            loss: mean over this rank's valid tokens.
            valid_T: mask of the tokens that count; None for all `num_tokens`.
        """
        if self.per_token:
            loss = loss * (num_tokens if valid_T is None else valid_T.sum())
        else:
            loss = loss / self.group.size()
        return MoEAuxLossAutoScaler.apply(activation, loss)

    def mean_over_ranks(self, values: Tensor) -> Tensor:
        """Average over the ranks that share a microbatch; they run in lockstep, so this cannot hold up a pipeline."""
        if self.group.size() == 1:
            return values
        values = values.clone()
        torch.distributed.all_reduce(values, group=self.group)
        return values / self.group.size()
