"""The losses of a competing step in a layer: computed, recorded and attached."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_compete.config import CompeteConfig
from megatron_compete.moe.balance import LoadBalance
from megatron_compete.moe.metrics import metrics_due, record_competition
from megatron_compete.moe.router import CompeteRouter
from megatron_compete.moe.sample import AllTokens
from megatron_compete.routing.losses import (
    DISTILLATIONS,
    distillation_target,
    diversity_loss,
    token_mean,
)
from megatron_compete.routing.winners import first_winners, overlap, same_favourite


@dataclass(frozen=True)
class Outcome:
    """What `CompeteMoELayer.route` found out about a microbatch and `postprocess` needs; T tokens that compete."""

    responses_TE: Tensor
    """Responses of the scoring pass, without gradient."""
    scores_TE: Tensor
    """What the winners were chosen by: the responses, or the centred responses."""
    winners_TK: Tensor
    logits: Any
    """The router's logits [T, E], with gradient; theirs brings the router's own losses along."""
    choice_TE: Any
    """The experts that the router would have chosen, bool."""
    sample: AllTokens
    """Which of the rank's tokens these are."""
    valid: Tensor | None
    """Mask of the rank's tokens that count, competing or not; None for all."""
    num_sequences: int
    """B: tokens are [S, B] flattened, those that compete too."""
    step: int


class CompetitionLosses:
    """c_D * L_D + c_div * L_div + c_bal * response balance."""

    def __init__(self, config: CompeteConfig, router: CompeteRouter) -> None:
        self.config = config
        self.router = router
        self.distillation = DISTILLATIONS[config.distill_loss]
        self.balance = LoadBalance(config.balance_loss, router.auxiliary)

    def attach(
        self, combined_TH: Tensor, rows_TKH: Tensor, responses_TE: Tensor, outcome: Outcome, layer_number: int
    ) -> Tensor:
        """`combined_TH` unchanged, with the step's losses in its backward pass.

        Args:
            combined_TH: the layer's output, of all the rank's tokens; T stands for those that compete in the others.
            rows_TKH: the winners' raw outputs, with gradient.
            responses_TE: responses, those of the winners (or all) with gradient.
        """
        config, sample, auxiliary = self.config, outcome.sample, self.router.auxiliary
        valid_T = None if outcome.valid is None else sample.take(outcome.valid)
        target_TE = distillation_target(outcome.scores_TE, config.distill_temperature, config.distill_standardize)
        probs_TE = self.router.probabilities(outcome.logits)
        distillation = self.distillation(probs_TE, target_TE, outcome.winners_TK, config.distill_winner_coeff, valid_T)
        diversity = diversity_loss(rows_TKH, valid_T)
        share = auxiliary.share(sample.among(outcome.valid))
        first_T = first_winners(outcome.scores_TE, outcome.winners_TK)
        balance = self.balance(responses_TE.softmax(dim=-1), outcome.num_sequences, valid_T, share, first_T)
        means = config.distill_coeff * distillation + config.diversity_coeff * diversity
        loss = share * means + config.response_balance_coeff * balance
        if metrics_due():
            record_competition(
                layer_number,
                rows_TKH.shape[0] if valid_T is None else valid_T.sum(),
                distillation=distillation,
                diversity=diversity,
                response_balance=balance,
                **self._agreement(probs_TE, outcome, valid_T),
            )
        return auxiliary.attach(combined_TH, loss, outcome.valid, combined_TH.shape[0])

    @torch.no_grad()
    def _agreement(self, probs_TE: Tensor, outcome: Outcome, valid_T: Tensor | None) -> dict[str, Tensor]:
        """Shares of the winners that the router would have chosen, and of tokens whose strongest is its favourite."""
        agreement_T = overlap(outcome.choice_TE, outcome.winners_TK)
        top1_T = same_favourite(probs_TE, outcome.choice_TE, outcome.scores_TE, outcome.winners_TK)
        return {"agreement": token_mean(agreement_T, valid_T), "agreement_top1": token_mean(top1_T, valid_T)}
