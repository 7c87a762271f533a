"""ReMoE in Megatron: ReLU gates, and one penalty coefficient for the whole model.

The coefficient follows the sparsity of all layers together, as in the paper. One per layer would hold every layer at K
experts a token, where the paper lets depth decide who takes more. Its price is two numbers summed over all ranks of the
model, pipeline stages included, once a step.
"""

from typing import ClassVar

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_compete.moe.baselines.config import BaselineConfig
from megatron_compete.moe.baselines.variable import VariableRouter
from megatron_compete.routing.baselines.remoe import l1_regularization, next_coefficient, relu_weights


class ReMoERouter(VariableRouter):
    """Experts are those with a positive logit, and weigh as much. A token may have none: its routed output is then 0.

    The state is the coefficient of the penalty, alike in all layers. TensorBoard's `load_balancing_loss` is the penalty
    before it.
    """

    num_of_model: ClassVar[int] = 2
    l1_coefficient: Tensor
    """[1], lambda of the step in progress."""

    def __init__(
        self,
        config: TransformerConfig,
        pg_collection: ProcessGroupCollection | None = None,
        is_mtp_layer: bool = False,
        *,
        settings: BaselineConfig,
        num_layers: int,
    ) -> None:
        super().__init__(config, pg_collection, is_mtp_layer, settings=settings)
        self.num_layers = num_layers
        self.register_buffer("l1_coefficient", torch.full((1,), settings.l1_init, dtype=torch.float32))

    @property
    def num_observed(self) -> int:
        """Pairs of token and expert that were chosen, and all pairs."""
        return self.num_of_model

    def choose(self, logits_TE: Tensor, valid_T: Tensor | None) -> tuple[Tensor, Tensor]:
        """ReLU of the logits, with the penalty attached, and where it is positive."""
        weights_TE = relu_weights(logits_TE)
        chosen_TE = weights_TE.detach() > 0
        if self.learns():
            weights_TE = self._penalised(weights_TE, chosen_TE, valid_T)
        return weights_TE, chosen_TE

    def _penalised(self, weights_TE: Tensor, chosen_TE: Tensor, valid_T: Tensor | None) -> Tensor:
        counted_TE, chosen_pairs = weights_TE, chosen_TE
        if valid_T is not None:
            counted_TE, chosen_pairs = weights_TE * valid_T.unsqueeze(-1), chosen_TE & valid_T.unsqueeze(-1)
        num_valid = valid_T.sum() if valid_T is not None else torch.tensor(len(weights_TE), device=weights_TE.device)
        self.observe(torch.stack([chosen_pairs.sum(), num_valid * self.num_experts]))
        tokens_E, tokens = self.tokens_per_expert(chosen_TE, valid_T)
        penalty = l1_regularization(counted_TE, tokens_E, tokens.squeeze(), self.topk, self.num_layers)
        return self.attach_balance(weights_TE, self.l1_coefficient.squeeze(), penalty, tokens)

    def end_step(self, sums: Tensor) -> None:
        """Raise the coefficient where tokens took more than K experts on average, lower it where fewer."""
        share = (sums[:1] / sums[1:].clamp_min(1.0)).float()
        following = next_coefficient(self.l1_coefficient, share, self.topk, self.num_experts, self.settings.l1_factor)
        self.l1_coefficient.copy_(torch.where(sums[1:] > 0, following, self.l1_coefficient))
