"""How a layer's own losses join the training loss."""

import torch
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor

from megatron_compete.moe.loss_tokens import loss_tokens_of


class AuxiliaryLoss:
    """Attaches losses so that their gradient is that of the mean over the whole microbatch, in every layout.

    A microbatch's tokens are split over the tensor (sequence) and context parallel ranks, and Megatron sums gradients
    over them, so a mean over this rank's valid tokens counts by their share in the microbatch's. Under
    `--calculate-per-token-loss` Megatron divides all gradients by the tokens that the loss counts in the global batch; a
    loss is therefore multiplied by those of its microbatch (`moe/loss_tokens.py`), or, where nobody has said what they are,
    by the layer's tokens, as in `TopKRouter.attach_and_log_load_balancing_loss`.

    Args:
        router: the layer's.
    """

    def __init__(self, router: TopKRouter) -> None:
        self.router = router
        self.group = router.tp_cp_group
        self.weight = 1.0
        """Of this layer's losses in the training loss."""

    def attach(self, activation: Tensor, loss: Tensor, valid_T: Tensor | None, num_tokens: int) -> Tensor:
        """`activation` unchanged; its backward pass also sends the gradient of `loss`.

        Args:
            loss: its gradients here and on the other ranks that share the microbatch add up to those of its loss. A mean
                over this rank's tokens is to be multiplied by their `share`.
            valid_T: mask of the rank's tokens that count; None for all `num_tokens`.
        """
        return MoEAuxLossAutoScaler.apply(activation, self.weight * loss * self._tokens(valid_T, num_tokens))

    def share(self, valid_T: Tensor | None) -> Tensor | float:
        """This rank's part of the microbatch's valid tokens; without a mask all ranks hold as many."""
        if valid_T is None or self.group.size() == 1:
            return 1 / self.group.size()
        count = valid_T.sum().float()
        return count / self.sum_over_ranks(count).clamp_min(1.0)

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """The sum of `values` over the ranks that share a microbatch, without gradient.

        They run in lockstep, so this cannot hold up a pipeline.
        """
        if self.group.size() == 1:
            return values
        values = values.detach().clone()
        torch.distributed.all_reduce(values, group=self.group)
        return values

    def _tokens(self, valid_T: Tensor | None, num_tokens: int) -> Tensor | int:
        """What Megatron will divide by and is to be undone."""
        if not self.router.calculate_per_token_loss:
            return 1
        counted = loss_tokens_of(self.router)
        if counted is not None:
            return counted
        return num_tokens * self.group.size() if valid_T is None else self.sum_over_ranks(valid_T.sum())
