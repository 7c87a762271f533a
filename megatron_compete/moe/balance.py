"""Load balance of a microbatch's tokens, of which this rank holds a part: `--compete-balance-loss`."""

from typing import Literal

import torch
from torch import Tensor

from megatron_compete.moe.auxiliary import AuxiliaryLoss
from megatron_compete.routing.losses import entropy_balance_loss, top1_balance_loss

Form = Literal["entropy", "top1"]


class LoadBalance:
    """The balance loss of one layer, of the router's probabilities and of responses alike.

    Args:
        form: of `CompeteConfig.balance_loss`.
        auxiliary: knows the ranks that share a microbatch.
    """

    def __init__(self, form: Form, auxiliary: AuxiliaryLoss) -> None:
        self.form = form
        self.auxiliary = auxiliary

    def __call__(
        self,
        shares_TE: Tensor,
        num_sequences: int,
        valid_T: Tensor | None,
        share: Tensor | float,
        first_T: Tensor | None = None,
    ) -> Tensor:
        """The loss of the whole microbatch; its gradients, to this rank's tokens alone, add up over the ranks that share it.

        Args:
            shares_TE: rows that sum to 1, of tokens [S, num_sequences] flattened.
            valid_T: mask of those that count, None for all.
            share: this rank's `AuxiliaryLoss.share` of the microbatch's tokens that count.
            first_T: each token's first choice; None: its largest share.
        """
        if self.form == "entropy":
            loss = entropy_balance_loss(
                shares_TE, valid_T, lambda mean_E: self.auxiliary.sum_over_ranks(mean_E * share)
            )
            return torch.lerp(loss.detach(), loss, share)  # its value, and the gradient of this rank's share
        first_T = shares_TE.detach().argmax(dim=-1) if first_T is None else first_T
        positions = len(shares_TE) // num_sequences
        return top1_balance_loss(
            shares_TE.view(positions, num_sequences, shares_TE.shape[-1]),
            first_T.view(positions, num_sequences),
            None if valid_T is None else valid_T.view(positions, num_sequences),
            self.auxiliary.sum_over_ranks,
        )
