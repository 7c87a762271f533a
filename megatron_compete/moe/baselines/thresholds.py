"""Routers that compare a score with a threshold which was known before the batch: USMoE and Expert-Threshold.

A threshold is the running mean, over training steps, of the one that would have met the budget of a microbatch. So a
token's experts depend on that token and on the past of training, in training, evaluation and decoding alike.

Exactly: the threshold of a microbatch is taken over its valid tokens, gathered over the tensor and context parallel ranks
that share it; that of a step is the mean over its microbatches on all data parallel ranks, weighted by valid tokens. It
does not depend on how tokens and experts lie on ranks, nor on whether microbatches run beside or after each other, but
on the microbatch's size: that of few tokens is the coarser estimate. (Megatron's quantile balancing and the authors of
Expert-Threshold average over microbatches as well.)

In the first `--router-threshold-warmup` steps there is none, or too young a one, and each microbatch is cut at its own:
expert choice, or USMoE as published, with their look into the future. By default that is the first step alone.
"""

from abc import abstractmethod
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_compete.moe.baselines.config import BaselineConfig
from megatron_compete.moe.baselines.variable import VariableRouter, scores_of_microbatch
from megatron_compete.routing.baselines.running import running_mean
from megatron_compete.routing.baselines.threshold import expert_thresholds, expert_weights
from megatron_compete.routing.baselines.usmoe import budget_threshold, unified_scores


class ThresholdRouter(VariableRouter):
    """A token's experts are those whose score reaches the threshold. The state is the threshold and its age in steps."""

    threshold: Tensor
    """[N], of the steps before this one."""
    threshold_steps: Tensor
    """[1], training steps that it is a mean over."""

    def __init__(
        self,
        config: TransformerConfig,
        pg_collection: ProcessGroupCollection | None = None,
        is_mtp_layer: bool = False,
        *,
        settings: BaselineConfig,
    ) -> None:
        super().__init__(config, pg_collection, is_mtp_layer, settings=settings)
        for name, size in (("threshold", self.num_observed - 1), ("threshold_steps", 1)):
            self.register_buffer(name, torch.zeros(size, dtype=torch.float32))
        self._warm = False

    @abstractmethod
    def scores(self, logits_TE: Tensor) -> Tensor:
        """What is compared, [T, E], in fp32 or above."""

    @abstractmethod
    def budget_threshold(self, scores_TE: Tensor) -> Tensor:
        """The threshold [N] that meets the budget of these tokens, of which there is at least one."""

    def chosen(self, scores_TE: Tensor, valid_T: Tensor | None) -> Tensor:
        """The experts of every token, bool [T, E]; in passes that train, the tokens are observed."""
        scores_TE = scores_TE.detach()
        steps = self._steps_known()
        cut_by_own = steps == 0 or (self.training and steps < self.settings.threshold_warmup)
        if not cut_by_own and not self.learns():
            return scores_TE >= self.threshold
        counted = scores_of_microbatch(scores_TE, valid_T, self.tp_cp_group)
        own = self.budget_threshold(counted) if len(counted) else torch.zeros_like(self.threshold)
        if self.learns():
            self.observe(torch.cat([len(counted) * own.double(), own.new_tensor([len(counted)]).double()]))
        return scores_TE >= (own if cut_by_own else self.threshold)

    def _steps_known(self) -> int:
        """Steps that the threshold is a mean over, as far as they matter: the device is not asked once it is warm."""
        needed = max(self.settings.threshold_warmup, 1)
        if self._warm:
            return needed
        steps = int(self.threshold_steps.item())
        self._warm = steps >= needed
        return steps

    def end_step(self, sums: Tensor) -> None:
        """Take the step's threshold into the running mean; a step without tokens changes nothing."""
        value, seen = (sums[:-1] / sums[-1].clamp_min(1.0)).float(), sums[-1] > 0
        steps = self.threshold_steps + 1
        mean = running_mean(self.threshold, value, steps, self.settings.threshold_decay)
        self.threshold.copy_(torch.where(seen, mean, self.threshold))
        self.threshold_steps.copy_(torch.where(seen, steps, self.threshold_steps))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._warm = False


class USMoERouter(ThresholdRouter):
    """USMoE by one threshold per layer, that gives K experts a token on average.

    A pair weighs its unified score, not normalised over the token's experts (the authors' code for OLMoE, whose
    configuration says so). The threshold does not balance the experts, so Megatron's `--moe-aux-loss-coeff` works: on
    softmax and on the experts that were chosen.
    """

    @property
    def num_observed(self) -> int:
        """The layer's threshold, and the tokens it is a mean over."""
        return 2

    def scores(self, logits_TE: Tensor) -> Tensor:
        """The unified score."""
        return unified_scores(logits_TE, self.settings.usmoe_alpha)

    def budget_threshold(self, scores_TE: Tensor) -> Tensor:
        """The T K-th largest score, [1]."""
        return budget_threshold(scores_TE, self.topk)

    def choose(self, logits_TE: Tensor, valid_T: Tensor | None) -> tuple[Tensor, Tensor]:
        """Unified scores, and where they reach the layer's threshold."""
        scores_TE = self.scores(logits_TE)
        chosen_TE = self.chosen(scores_TE, valid_T)
        if self.learns() and self.get_aux_loss_coeff("aux_loss") > 0:
            scores_TE = self.balanced(scores_TE, logits_TE, chosen_TE, valid_T)
        return scores_TE, chosen_TE


class ExpertThresholdRouter(ThresholdRouter):
    """Expert-Threshold: every expert has a threshold of its own, that gives it K/E of the tokens on average."""

    @property
    def num_observed(self) -> int:
        """The experts' thresholds, and the tokens they are a mean over."""
        return int(self.num_experts) + 1

    def scores(self, logits_TE: Tensor) -> Tensor:
        """The logits."""
        return logits_TE.to(torch.promote_types(logits_TE.dtype, torch.float32))

    def budget_threshold(self, scores_TE: Tensor) -> Tensor:
        """Each expert's T K/E-th largest logit, [E]."""
        return expert_thresholds(scores_TE, self.topk)

    def choose(self, logits_TE: Tensor, valid_T: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sigmoid of the logits, and where these reach the experts' thresholds."""
        return expert_weights(logits_TE), self.chosen(self.scores(logits_TE), valid_T)
