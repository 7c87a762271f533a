"""The competing step as one would write it first: every token to every expert, and autograd over all of it.

What the CompeteSMoE authors' code does, carried over to Megatron: an all-ones routing map through Megatron's
all-to-all dispatcher, [T, E, H] outputs alive from forward to backward, gradients (zeros, for the losers) back through
all experts. Formulas are those of `megatron_compete.routing`; only the way they are fed differs from `CompeteMoELayer`.
"""

import copy

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler, get_default_pg_collection
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_compete.config import CompeteConfig
from megatron_compete.moe.competition import Competition
from megatron_compete.moe.layer import with_compete_router
from megatron_compete.routing.losses import DISTILLATIONS, distillation_target, diversity_loss, entropy_balance_loss
from megatron_compete.routing.responses import RESPONSES
from megatron_compete.routing.rule import RouterRule
from megatron_compete.routing.winners import choose_winners, competition_weights


class NaiveCompeteLayer(MoELayer):
    """Megatron's `MoELayer`, competing at every step, densely.

    Args:
        compete: its losses' weights and its response. The other arguments are `MoELayer`'s.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: MoESubmodules,
        pg_collection: ProcessGroupCollection,
        compete: CompeteConfig,
    ) -> None:
        assert compete.response_centering == "none", "centred responses are not written here"
        super().__init__(config, submodules, pg_collection=pg_collection)
        self.compete = compete
        self.response = RESPONSES[compete.response]
        to_all = copy.copy(config)
        to_all.moe_router_topk = config.num_moe_experts  # the dispatcher sizes its buffers by tokens * topk
        to_all.moe_permute_fusion = False  # the fused kernel combines rows; here each is wanted
        self.token_dispatcher = MoEAlltoAllTokenDispatcher(
            self.num_local_experts, self.local_expert_indices, config=to_all, pg_collection=pg_collection
        )
        self._logits: Tensor | None = None

    def route(self, hidden_states: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Every token to every expert, with weight one."""
        self._logits = self.router.gating(hidden_states).reshape(-1, self.config.num_moe_experts)
        ones_TE = torch.ones_like(self._logits)
        return ones_TE, ones_TE.bool()

    def postprocess(self, output: Tensor, shared_expert_output: Tensor | None) -> Tensor:
        """Winners, their weighted sum and the losses from all experts' outputs."""
        logits, self._logits = self._logits, None
        assert logits is not None and shared_expert_output is None
        hidden = output.shape[-1]
        rows_TEH = output.view(self.config.num_moe_experts, -1, hidden).transpose(0, 1)
        responses_TE = self.response(rows_TEH)
        winners_TK = choose_winners(responses_TE, RouterRule.of(vars(self.config)))
        rows_TKH = rows_TEH.gather(1, winners_TK.unsqueeze(-1).expand(-1, -1, hidden))
        weights_TK = competition_weights(responses_TE.gather(1, winners_TK))
        combined_TH = (weights_TK.unsqueeze(-1) * rows_TKH).sum(dim=1).to(output.dtype)
        loss = self._loss(logits, responses_TE, winners_TK, rows_TKH)
        return MoEAuxLossAutoScaler.apply(combined_TH, loss).view(self.token_dispatcher.hidden_shape)

    def _loss(self, logits: Tensor, responses_TE: Tensor, winners_TK: Tensor, rows_TKH: Tensor) -> Tensor:
        """The step's three losses."""
        coeff = self.compete
        probs_TE = logits.softmax(dim=-1, dtype=torch.float32)
        target_TE = distillation_target(responses_TE, coeff.distill_temperature, coeff.distill_standardize)
        distillation = DISTILLATIONS[coeff.distill_loss](probs_TE, target_TE, winners_TK, coeff.distill_winner_coeff)
        if coeff.response_gradients == "winners":
            responses_TK = responses_TE.gather(1, winners_TK)
            responses_TE = responses_TE.detach().scatter(1, winners_TK, responses_TK)
        return (
            coeff.distill_coeff * distillation
            + coeff.diversity_coeff * diversity_loss(rows_TKH)
            + coeff.response_balance_coeff * entropy_balance_loss(responses_TE.softmax(dim=-1))
        )


class NaiveUtilityLayer(NaiveCompeteLayer):
    """Competition by utility, densely: the router's K experts give the output, and autograd the router's gradient from
    all experts' outputs (straight through). What `--compete-kind utility` is compared with before it is measured."""

    def route(self, hidden_states: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Every token to every expert; the router's own weights wait for `postprocess`."""
        self._weights_TE, _ = self.router(hidden_states)
        return super().route(hidden_states, padding_mask)

    def postprocess(self, output: Tensor, shared_expert_output: Tensor | None) -> Tensor:
        """The router's weighted sum, with the gradient of the sum over all experts for the logits."""
        logits, self._logits = self._logits, None
        assert logits is not None and shared_expert_output is None
        rows_TEH = output.view(self.config.num_moe_experts, -1, output.shape[-1]).transpose(0, 1)
        routed_TH = torch.einsum("te,teh->th", self._weights_TE.detach().to(rows_TEH.dtype), rows_TEH)
        probs_TE = logits.softmax(dim=-1, dtype=torch.float32)
        dense_TH = torch.einsum("te,teh->th", probs_TE, rows_TEH.detach().float())
        straight_TH = routed_TH + (dense_TH - dense_TH.detach()).to(routed_TH.dtype)
        return straight_TH.view(self.token_dispatcher.hidden_shape)


class ScheduledNaiveLayer(NaiveCompeteLayer):
    """The naive layer in a model: dense at the steps that the schedule names, Megatron's at all others.

    Args:
        competition: as of `CompeteMoELayer`, whose other arguments these are too.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: MoESubmodules | None = None,
        layer_number: int | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        is_mtp_layer: bool = False,
        name: str | None = None,
        *,
        competition: Competition,
    ) -> None:
        assert submodules is not None and not is_mtp_layer
        groups = pg_collection or get_default_pg_collection()
        super().__init__(config, with_compete_router(submodules, competition), groups, competition.config)
        if layer_number is not None:
            self.set_layer_number(layer_number)
        self.competition = competition
        self._dense_dispatcher = self.token_dispatcher
        self._normal_dispatcher = MoEAlltoAllTokenDispatcher(
            self.num_local_experts, self.local_expert_indices, config=config, pg_collection=groups
        )
        self._dense = False

    def route(self, hidden_states: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Dense or by the router."""
        self._dense = self.training and self.competition.is_active(self.layer_number)
        self.token_dispatcher = self._dense_dispatcher if self._dense else self._normal_dispatcher
        if self._dense:
            return super().route(hidden_states, padding_mask)
        return MoELayer.route(self, hidden_states, padding_mask)

    def postprocess(self, output: Tensor, shared_expert_output: Tensor | None) -> Tensor:
        """The counterpart of `route`."""
        if self._dense:
            return super().postprocess(output, shared_expert_output)
        return MoELayer.postprocess(self, output, shared_expert_output)
