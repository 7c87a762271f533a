"""Competition by utility in a layer: a normal step whose backward pass scores all experts.

Forward, the router routes as at any step, with its own losses, through whatever dispatcher. Backward, the gradient of
the layer's output arrives first and is kept (`moe/crossing.py`); where the backward pass comes by the routing weights,
the scoring pass runs with it, and the router's logits get their dense gradient.
All ranks of an expert group go through the backward passes of the same layers in the same order, so its collectives
meet as those of the dispatcher's backward pass do.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_compete.moe.crossing import Crossing
from megatron_compete.moe.metrics import CompetitionMetrics, metrics_due
from megatron_compete.moe.router import CompeteRouter
from megatron_compete.moe.sample import AllTokens
from megatron_compete.moe.scoring import ScoringPass
from megatron_compete.routing.losses import token_mean
from megatron_compete.routing.utility import dense_router_gradient
from megatron_compete.routing.winners import choose_winners, overlap, same_favourite


class UtilityCompetition:
    """One layer's competition by utility.

    Args:
        gradient: `CompeteConfig.utility_gradient`.
        router, score: the layer's; the scoring pass reduces by `routing.utility.utility`.
    """

    def __init__(self, gradient: str, router: CompeteRouter, score: ScoringPass) -> None:
        self.router = router
        self.score = score
        self.replaces_sparse = gradient == "dense"

    def depart(
        self,
        crossing: Crossing,
        sample: AllTokens,
        probs_TE: Tensor,
        hidden_states: Tensor,
        logits: Tensor,
        choice_TE: Tensor,
        valid_T: Tensor | None,
    ) -> Tensor:
        """The router's weights [T, E] unchanged; their backward pass sends the logits their gradient.

        The sparse gradient of the tokens that compete ends here where the dense one replaces it. Losses that Megatron
        and the router attached to the weights send theirs on: those only need the backward pass to come by.

        Args:
            crossing: brings the gradient of the layer's output. A shared expert's output may be part of it: the
                gradient of a sum is that of its parts.
            sample: the tokens that compete.
            hidden_states: the layer's input [S, B, H].
            logits: those that the router routed by [S, B, E], with gradient.
            choice_TE: the experts that the router chose, bool, before any was dropped for capacity.
            valid_T: mask of the tokens that count in metrics, None for all.
        """
        return _LogitGradient.apply(
            self, metrics_due(), crossing, sample, probs_TE, hidden_states.detach(), logits, choice_TE, valid_T
        )

    def logit_gradient(self, logits_TE: Tensor, utilities_TE: Tensor, choice_TE: Tensor) -> Tensor:
        """Gradient of the logits [T, E]: of all experts, or of those that were not selected beside the sparse one."""
        grad_TE = dense_router_gradient(logits_TE, utilities_TE, self.router.rule)
        return grad_TE if self.replaces_sparse else grad_TE.masked_fill(choice_TE, 0.0)

    def record(
        self,
        metrics: CompetitionMetrics,
        logits_TE: Tensor,
        utilities_TE: Tensor,
        choice_TE: Tensor,
        valid_T: Tensor | None,
    ) -> None:
        """Shares of the K most useful experts that the router had selected, and of tokens whose most useful expert is
        its favourite."""
        best_TK = choose_winners(-utilities_TE, self.router.rule)
        top1_T = same_favourite(self.router.probabilities(logits_TE), choice_TE, -utilities_TE, best_TK)
        metrics.record_means(
            self.router.layer_number,
            len(best_TK) if valid_T is None else valid_T.sum(),
            agreement=token_mean(overlap(choice_TE, best_TK), valid_T),
            agreement_top1=token_mean(top1_T, valid_T),
        )


class _LogitGradient(torch.autograd.Function):
    """Routing weights, unchanged, whose backward pass scores all experts by the gradient of the layer's output."""

    @staticmethod
    def forward(
        ctx: Any,
        competition: UtilityCompetition,
        metrics: CompetitionMetrics | None,
        crossing: Crossing,
        sample: AllTokens,
        probs_TE: Tensor,
        hidden_states: Tensor,
        logits: Tensor,
        choice_TE: Tensor,
        valid_T: Tensor | None,
    ) -> Tensor:
        # whether a step is logged is asked in the forward pass: a backward pass runs without gradients
        ctx.competition, ctx.metrics, ctx.crossing, ctx.sample = competition, metrics, crossing, sample
        ctx.logits = logits.shape, logits.dtype
        of_tokens = (hidden_states.flatten(0, 1), logits.reshape(choice_TE.shape), choice_TE, valid_T)
        ctx.save_for_backward(*(None if values is None else sample.take(values) for values in of_tokens))
        return probs_TE.view_as(probs_TE)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_probs_TE,) = grad_outputs
        (grad_output,) = ctx.crossing.take_gradients()
        tokens_NH, logits_NE, choice_NE, valid_N = ctx.saved_tensors
        competition: UtilityCompetition = ctx.competition
        sample: AllTokens = ctx.sample
        utilities_NE = competition.score(tokens_NH, sample.take(grad_output.flatten(0, 1)))
        grad_NE = competition.logit_gradient(logits_NE, utilities_NE, choice_NE)
        if ctx.metrics is not None:
            competition.record(ctx.metrics, logits_NE, utilities_NE, choice_NE, valid_N)
        shape, dtype = ctx.logits
        grad_logits = sample.put(grad_NE.new_zeros(grad_probs_TE.shape), grad_NE).to(dtype).view(shape)
        if competition.replaces_sparse:
            grad_probs_TE = sample.put(grad_probs_TE, torch.zeros_like(sample.take(grad_probs_TE)))
        return None, None, None, None, grad_probs_TE, None, grad_logits, None, None
