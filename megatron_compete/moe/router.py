"""Megatron's top-K router with the authors' losses of a normal step."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_compete.config import CompeteConfig
from megatron_compete.moe.auxiliary import AuxiliaryLoss
from megatron_compete.moe.balance import Form, LoadBalance
from megatron_compete.moe.graphs import is_capturing
from megatron_compete.moe.metrics import metrics_due, record_changes, record_routing
from megatron_compete.moe.metrics_probe import RouterProbe
from megatron_compete.moe.sample import AllTokens
from megatron_compete.routing.losses import router_z_loss
from megatron_compete.routing.rule import RouterRule
from megatron_compete.routing.winners import winners_map


def valid_tokens(padding_mask: Tensor | None) -> Tensor | None:
    """The mask of tokens that count, bool [T]; Megatron's code treats True in its mask as padding."""
    return None if padding_mask is None else ~padding_mask.reshape(-1).bool()


def logits_of_no_tokens(router: TopKRouter, input: Tensor) -> Tensor:
    """Logits [S, B, E] of router inputs [S, B, H] that hold no token.

    Megatron's own `gating` reshapes to [-1, ...], which zero tokens leave undefined. These logits come from a product
    with the weight, so that it takes part in the backward pass as on other ranks.
    """
    dtype = {"fp32": torch.float32, "fp64": torch.float64}.get(router.config.moe_router_dtype, input.dtype)
    return torch.nn.functional.linear(input.to(dtype), router.weight.to(dtype))


@dataclass(frozen=True)
class RouterLosses:
    """Losses of the tokens that go where the router says."""

    balance_coeff: float = 0.0
    balance: Form = "entropy"
    z_coeff: float = 0.0

    @classmethod
    def of(cls, config: CompeteConfig) -> "RouterLosses":
        """Those of these settings; none where competition is switched off."""
        if not config.enabled:
            return cls()
        return cls(config.router_balance_coeff, config.balance_loss, config.router_z_loss_coeff)


class CompeteRouter(TopKRouter):
    """`TopKRouter`, with the losses of CompeteSMoE's router at normal steps."""

    def __init__(
        self,
        config: TransformerConfig,
        pg_collection: ProcessGroupCollection | None = None,
        is_mtp_layer: bool = False,
        *,
        losses: RouterLosses = RouterLosses(),
    ) -> None:
        super().__init__(config=config, pg_collection=pg_collection, is_mtp_layer=is_mtp_layer)
        self.rule = RouterRule.of(vars(config))
        self.losses = losses
        self.auxiliary = AuxiliaryLoss(self)
        self.balance = LoadBalance(losses.balance, self.auxiliary)
        self.probe = RouterProbe()
        self._kept_logits: list[Tensor] | None = None
        self._competing: AllTokens | None = None

    def gating(self, input: Tensor) -> Tensor:
        """As `TopKRouter.gating`: router inputs [S, B, H] to logits [S, B, E]; a rank may hold no tokens."""
        return super().gating(input) if input.numel() > 0 else logits_of_no_tokens(self, input)

    def forward(self, input: Tensor, padding_mask: Tensor | None = None, competing: AllTokens | None = None) -> Any:
        """As `TopKRouter.forward`: router inputs [S, B, H] to probabilities and routing map, both [T, E].

        Args:
            competing: tokens that others win than those chosen here; None for none. The router is regularised and counts
                what it would have chosen as at a normal step (Megatron's balance losses and z-loss, the expert bias),
                but for `losses`, which are of the tokens that it routes.
        """
        self.observe_inputs(input, padding_mask)
        self._competing = competing
        return super().forward(input, padding_mask)

    def routing(self, logits: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `TopKRouter.routing`: logits [S, B, E] to probabilities and routing map, both [T, E]."""
        if self._kept_logits is not None:
            self._kept_logits.append(logits)
        probs_TE, routing_map_TE = super().routing(logits, padding_mask)
        competing, valid_T = self._competing, valid_tokens(padding_mask)
        part_T = None if competing is None else competing.beside(valid_T)
        if competing is None or part_T is not None:
            probs_TE = self._with_losses(probs_TE, logits, valid_T, part_T)
        if competing is None:
            self.observe_routing(logits, routing_map_TE, padding_mask)
        return probs_TE, routing_map_TE

    def _with_losses(self, probs_TE: Tensor, logits: Tensor, valid_T: Tensor | None, part_T: Tensor | None) -> Tensor:
        """The weights unchanged, with `losses` of logits [S, B, E] attached, of valid tokens or a part of them."""
        balance_coeff, z_coeff = self.losses.balance_coeff, self.losses.z_coeff
        if not (max(balance_coeff, z_coeff) > 0.0 and self.training and torch.is_grad_enabled()):
            return probs_TE
        counted_T = valid_T if part_T is None else part_T
        share = self.auxiliary.share(counted_T)
        loss = probs_TE.new_zeros((), dtype=torch.float32)
        if balance_coeff > 0.0:
            loss = balance_coeff * self.balance(self.probabilities(logits), logits.shape[1], counted_T, share)
        if z_coeff > 0.0:
            loss = loss + z_coeff * share * router_z_loss(self._flat(logits), counted_T)
        return self.auxiliary.attach(probs_TE, loss, valid_T, probs_TE.shape[0])

    @contextlib.contextmanager
    def keep_logits(self) -> Iterator[list[Tensor]]:
        """Collect the logits [S, B, E] of the forward passes in the block: those that were routed by, input jitter
        included, without the losses that Megatron attaches to them."""
        kept: list[Tensor] = []
        self._kept_logits = kept
        try:
            yield kept
        finally:
            self._kept_logits = None

    def observe_inputs(self, hidden_states: Tensor, padding_mask: Tensor | None) -> None:
        """Metrics of a training pass's router inputs [S, B, H]."""
        if self._is_observed():
            valid_T = valid_tokens(padding_mask)
            record_changes(self.layer_number, self.probe, hidden_states, valid_T, self._choose)

    def observe_routing(self, logits: Tensor, routing_map_TE: Tensor, padding_mask: Tensor | None) -> None:
        """Metrics of where a training pass's tokens went, by this router or by the competition."""
        if self._is_observed():
            valid_T = valid_tokens(padding_mask)
            record_routing(self.layer_number, lambda: self.probabilities(logits), routing_map_TE, valid_T)

    def observe_replay(self, hidden_states: Tensor | None, routing_map_TE: Tensor) -> None:
        """Metrics of a training pass that a CUDA graph routed: where its tokens went, and from the router's inputs
        [S, B, H], where they are at hand, what it made of them."""
        if not self._is_observed():
            return
        probabilities = None
        if hidden_states is not None:
            inputs = hidden_states.detach()
            record_changes(self.layer_number, self.probe, inputs, None, self._choose)
            probabilities = lambda: self.probabilities(self.gating(inputs))  # noqa: E731
        record_routing(self.layer_number, probabilities, routing_map_TE, None)

    def _is_observed(self) -> bool:
        return self.training and not self.is_mtp_layer and not is_capturing() and metrics_due() is not None

    def _choose(self, inputs: Tensor) -> Tensor:
        return self.would_choose(self.gating(inputs))

    @property
    def forces_load(self) -> bool:
        """Whether logits are random numbers that stand for a load to measure, so that winners must follow them too."""
        return bool(self.config.moe_router_force_load_balancing or self.config.moe_router_force_biased is not None)

    def probabilities(self, logits: Tensor) -> Tensor:
        """The p of the paper, `RouterRule.probabilities`: fp32 [T, E] of logits [S, B, E]."""
        return self.rule.probabilities(self._flat(logits))

    def weight_sum(self, logits: Tensor, routing_map_TE: Tensor) -> Tensor | float:
        """What each token's weights sum to at a normal step with these logits [S, B, E] and choice; no gradient."""
        return self.rule.weight_sum(self._flat(logits), routing_map_TE)

    @torch.no_grad()
    def would_choose(self, logits: Tensor) -> Tensor:
        """The experts that a normal step chooses, before it drops any: bool [T, E]; no loss, no state is touched."""
        if self.routing_type == "sinkhorn":
            return self.sinkhorn_load_balancing(self._flat(logits))[1]
        bias_E = self.expert_bias if self.qb_beta is None else -self.qb_beta
        return winners_map(self.rule.choice(self._flat(logits), bias_E), self.config.num_moe_experts)

    def chosen(self, logits: Tensor, routing_map_TE: Tensor) -> Tensor:
        """The choice [T, E] behind a routing map, which lacks what a capacity dropped and has what pads to it."""
        return routing_map_TE if self.config.moe_expert_capacity_factor is None else self.would_choose(logits)

    def _flat(self, logits: Tensor) -> Tensor:
        return logits.reshape(-1, self.config.num_moe_experts)
