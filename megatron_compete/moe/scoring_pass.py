"""A layer's scoring pass: by which scorer, and in which precision."""

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_compete.config import CompeteConfig
from megatron_compete.moe.expert_group import ExpertGroups
from megatron_compete.moe.kernels.choice import check_score_device, make_scorer
from megatron_compete.moe.precision import scoring_precision
from megatron_compete.moe.scoring import Reduction, Scorer, score_tokens


class ScoringPass:
    """Scores of all of a layer's experts, reduced as one kind of competition wants them.

    Args:
        compete: its settings.
        config: Megatron's, of the layer.
        experts, groups: the layer's.
        reduction: of raw expert outputs, and of a vector per token if it takes one, to scalars.
    Raises:
        CompeteError: fused kernels are asked for and this process cannot run them.
    """

    def __init__(
        self,
        compete: CompeteConfig,
        config: TransformerConfig,
        experts: torch.nn.Module,
        groups: ExpertGroups,
        reduction: Reduction,
    ) -> None:
        check_score_device(compete.score_kernel)
        self.compete = compete
        self.config = config
        self.experts = experts
        self.groups = groups
        self.reduction = reduction
        self._scorer: Scorer | None = None

    def __call__(self, tokens_TH: Tensor, *vectors_TH: Tensor) -> Tensor:
        """Scores fp32 [T, E] of this rank's tokens, without gradient; a collective of the expert group.

        Raises:
            CompeteError: at the first pass, fused kernels are asked for and do not cover the experts as they are.
        """
        if self._scorer is None:
            self._scorer = make_scorer(
                self.compete.score_kernel, self.config, self.experts, self.reduction, self.groups, tokens_TH
            )
        with scoring_precision(self.config, self.experts):
            return score_tokens(
                tokens_TH, self.experts, self.reduction, self.groups, self.compete.score_chunk_tokens, *vectors_TH,
                scorer=self._scorer,
            )  # fmt: skip
