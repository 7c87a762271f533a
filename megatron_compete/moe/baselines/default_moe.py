"""Default MoE in Megatron: a router whose other experts answer with running means, and the layer that adds them.

Decided here, for the paper's text leaves it open or speaks of one process: the means change at the end of a training step
and not with each microbatch; they begin as zeros; evaluation uses them as training does; the decay's default is ours.

The means are kept by the router, as other routers keep thresholds: they change once a step, from all ranks and microbatches,
and are in the checkpoint. Rows come back to a token's rank one per (token, expert) before Megatron sums them; there they
are observed, divided by their weights, which the experts multiply by.
"""

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_compete.moe.baselines.config import BaselineConfig
from megatron_compete.moe.baselines.variable import VariableRouter
from megatron_compete.moe.router import valid_tokens
from megatron_compete.routing.baselines.default_moe import (
    chosen_experts,
    default_part,
    next_defaults,
    with_gradient_of,
)

LEAST_WEIGHT = 1e-6
"""Outputs with a smaller weight are not observed: divided by it they would be rounding, or infinite."""


class DefaultMoERouter(VariableRouter):
    """The K experts with the largest softmax over all, weighted by it; the state are the experts' default vectors.

    `default_outputs` [E, H] begin as zeros. Evaluation uses them and does not change them.
    """

    default_outputs: Tensor

    def __init__(
        self,
        config: TransformerConfig,
        pg_collection: ProcessGroupCollection | None = None,
        is_mtp_layer: bool = False,
        *,
        settings: BaselineConfig,
    ) -> None:
        super().__init__(config, pg_collection, is_mtp_layer, settings=settings)
        size = (int(config.num_moe_experts or 0), config.hidden_size)
        self.register_buffer("default_outputs", torch.zeros(size, dtype=torch.float32))

    @property
    def num_observed(self) -> int:
        """The sums of the experts' outputs, and their tokens."""
        return self.default_outputs.numel() + len(self.default_outputs)

    def choose(self, logits_TE: Tensor, valid_T: Tensor | None) -> tuple[Tensor, Tensor]:
        """Probabilities, and whether they are among a token's K largest."""
        probs_TE = logits_TE.softmax(dim=-1, dtype=torch.promote_types(logits_TE.dtype, torch.float32))
        chosen_TE = chosen_experts(probs_TE.detach(), self.topk)
        self._others_TE = (self.config.moe_router_topk_scaling_factor or 1.0) * probs_TE.masked_fill(chosen_TE, 0.0)
        if self.learns() and self.get_aux_loss_coeff("aux_loss") > 0:
            probs_TE = self.balanced(probs_TE, logits_TE, chosen_TE, valid_T)
        return probs_TE, chosen_TE

    def routing(self, logits: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `VariableRouter.routing`; what this pass's outputs are observed by is kept until they come."""
        weights_TE, routing_map_TE = super().routing(logits, padding_mask)
        self._pass = weights_TE.detach(), routing_map_TE, valid_tokens(padding_mask)
        return weights_TE, routing_map_TE

    def default_part(self) -> Tensor:
        """What the other experts add to the outputs of the tokens just routed, fp32 [T, H]."""
        return default_part(self._others_TE, self.default_outputs)

    @torch.no_grad()
    def observe_rows(self, rows_RH: Tensor) -> None:
        """Observe the outputs of the tokens just routed.

        Args:
            rows_RH: one weighted output per (token, expert), experts ascending, tokens ascending within.
        """
        weights_TE, routing_map_TE, valid_T = self._pass
        experts, tokens = routing_map_TE.t().nonzero(as_tuple=True)
        weights = weights_TE[tokens, experts].float()
        counts = weights >= LEAST_WEIGHT if valid_T is None else (weights >= LEAST_WEIGHT) & valid_T[tokens]
        factors = torch.where(counts, 1.0 / weights, 0.0).unsqueeze(-1)
        sums_EH = torch.zeros_like(self.default_outputs).index_add_(0, experts, rows_RH.float() * factors)
        tokens_E = sums_EH.new_zeros(len(sums_EH)).index_add_(0, experts, counts.float())
        self.observe(torch.cat([sums_EH.flatten(), tokens_E]))

    def end_step(self, sums: Tensor) -> None:
        """Take the step's means into the running ones."""
        outputs, tokens_E = sums.split([self.default_outputs.numel(), len(self.default_outputs)])
        sums_EH = outputs.view_as(self.default_outputs)
        self.default_outputs.copy_(next_defaults(self.default_outputs, sums_EH, tokens_E, self.settings.default_decay))


class DefaultMoELayer(MoELayer):
    """Megatron's `MoELayer`, whose output has the default vectors of the experts that were not chosen, or whose router has
    their gradient (`--router-default-part`)."""

    router: DefaultMoERouter

    def postprocess(self, output: Tensor, shared_expert_output: Tensor | None) -> Tensor:
        """The layer's output [S, B, H] from the rows that came back [T * K, H]."""
        if self.router.learns():
            self.router.observe_rows(output.detach())
        combined = super().postprocess(output, shared_expert_output)
        if self.router.settings.default_part == "gradient":
            part = self.router.default_part().view_as(combined)
            return with_gradient_of(combined, part) if self.router.learns() else combined
        return combined + self.router.default_part().view_as(combined).to(combined.dtype)
