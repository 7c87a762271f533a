"""The competing MoE layer: two hooks into Megatron's.

A competing step differs from a normal one in `route` (all experts are scored, the winners are the routing map) and in
`postprocess` (the winners' rows are weighted by their own responses). Competition by utility routes as a normal step
does and scores in the backward pass (`moe/utility.py`). Dispatch, experts, grouped GEMM, expert tensor parallelism and
combine in between are Megatron's, untouched. `forward` is not overridden because Megatron's EP-overlap schedule calls
the hooks directly.
"""

import dataclasses
import functools
from collections import deque

import torch
from megatron.core.inference.utils import InferenceMode
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.moe.moe_utils import get_default_pg_collection
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.moe.token_dispatcher import MoETokenDispatcher
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_compete.common.errors import CompeteError
from megatron_compete.moe.centering import make_centering
from megatron_compete.moe.competition import Competition
from megatron_compete.moe.crossing import Crossing
from megatron_compete.moe.expert_group import ExpertGroups
from megatron_compete.moe.gradients import AlsoReaching
from megatron_compete.moe.graphs import is_capturing
from megatron_compete.moe.latent import LatentProjections
from megatron_compete.moe.losses import CompetitionLosses, Outcome
from megatron_compete.moe.response_gradients import AllResponses, Recomputation
from megatron_compete.moe.router import CompeteRouter, RouterLosses, valid_tokens
from megatron_compete.moe.row_dispatcher import RowDispatcher, experts_of_rows
from megatron_compete.moe.sample import AllTokens, TokenSampler
from megatron_compete.moe.scoring import ScoringPass
from megatron_compete.moe.utility import UtilityCompetition
from megatron_compete.routing.responses import RESPONSES
from megatron_compete.routing.utility import utility
from megatron_compete.routing.winners import choose_winners, competition_weights, winners_map


class CompeteMoELayer(MoELayer):
    """Megatron's `MoELayer`, competing at the steps that the schedule names.

    Args:
        competition: shared by all layers of the model. The other arguments are `MoELayer`'s.
    """

    token_dispatcher: MoETokenDispatcher

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
        groups = pg_collection or get_default_pg_collection()
        assert submodules is not None
        super().__init__(config, with_compete_router(submodules, competition), layer_number, groups, is_mtp_layer, name)  # fmt: skip
        self.competition = competition
        self.response = RESPONSES[competition.config.response]
        self.groups = ExpertGroups.of(groups)
        self.centering = make_centering(
            competition.config.response_centering,
            competition.config.response_ema_decay,
            config.num_moe_experts,
            groups,
        )
        self.sampler = TokenSampler(competition.config.token_fraction, config, groups)
        self.losses = CompetitionLosses(competition.config, self.router)
        self.loss_weight = competition.loss_weight(len(competition.layer_numbers))
        self._normal_dispatcher = self.token_dispatcher
        sampled = competition.config.token_fraction < 1.0
        self._row_dispatcher = RowDispatcher(self.num_local_experts, self.local_expert_indices, config, groups, sampled)
        if self.shared_expert_overlap:
            self._row_dispatcher.set_shared_experts(self.shared_experts)
        self.latent = LatentProjections.of(self)
        by_utility = competition.config.kind == "utility"
        response = self.response if self.latent is None else self.latent.response(self.response)
        self.score = ScoringPass(
            competition.config, config, self.experts, self.groups, utility if by_utility else response, self.latent
        )
        self._outcome: Outcome | None = None
        self._crossing: Crossing | None = None
        self._first_pass: deque[Outcome] = deque()
        self._utility = (
            UtilityCompetition(competition.config.utility_gradient, self.router, self.score) if by_utility else None
        )

    @property
    def loss_weight(self) -> float:
        """Weight of this layer's losses in the training loss, those of its router included (not Megatron's own)."""
        return self.router.auxiliary.weight

    @loss_weight.setter
    def loss_weight(self, weight: float) -> None:
        self.router.auxiliary.weight = weight

    def competes(self) -> bool:
        """Whether this layer competes at the current step; never in evaluation or inference, never as an MTP layer."""
        if not self.training or InferenceMode.is_active() or self.is_mtp_layer or is_capturing():
            return False
        return self.competition.is_active(self.layer_number)

    def route(self, hidden_states: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Routing weights and map [T, E] for tokens [S, B, H]; on a competing step ones on the winners, or by utility
        the router's own."""
        self._outcome, self._crossing = None, None
        if self.token_dispatcher is self._row_dispatcher:  # a competing step was broken off
            self.token_dispatcher = self._normal_dispatcher
        replayed = not self.cudagraph_tensor_store.is_empty()
        if not self.competes():
            probs_TE, routing_map_TE = super().route(hidden_states, padding_mask)
            if replayed:
                self._observe_replay(hidden_states, routing_map_TE)
            return probs_TE, routing_map_TE
        if replayed:
            raise CompeteError(
                f"layer {self.layer_number} competes and its router is in a CUDA graph: leave moe_router out of "
                "--cuda-graph-modules, or use Megatron's own transformer layers, which are known to run eagerly then"
            )
        if self._utility is not None:
            return self._route_by_router(self._utility, hidden_states, padding_mask)
        outcome, probs_TE, routing_map_TE = self._compete(hidden_states, padding_mask)
        self._outcome = outcome
        self._crossing = crossing = Crossing()
        # Megatron's forward has just set this step's dispatcher, and inference has another than training: keep that one
        self._normal_dispatcher = self.token_dispatcher
        self.token_dispatcher = self._row_dispatcher
        return crossing.depart(probs_TE, outcome.logits, self._all_responses(outcome, hidden_states)), routing_map_TE

    def _observe_replay(self, hidden_states: Tensor, routing_map_TE: Tensor | None) -> None:
        """Metrics of a normal step whose router ran in a CUDA graph, from what the graph gave back."""
        if routing_map_TE is not None:
            self.router.observe_replay(hidden_states, routing_map_TE)
            return
        # the graph reaches further, to the dispatcher: tokens are permuted, and the map is what that was given
        owner = getattr(self.token_dispatcher, "_comm_manager", self.token_dispatcher)
        routing_map_TE = getattr(owner, "routing_map", None)
        if routing_map_TE is not None:
            self.router.observe_replay(None, routing_map_TE)

    def routed_experts_compute(self, hidden_states: Tensor, probs: Tensor) -> tuple[Tensor, Tensor | None]:
        """As upstream; on a competing step the experts know that neither router nor dispatcher has padded."""
        if self.token_dispatcher is not self._row_dispatcher:
            return super().routed_experts_compute(hidden_states, probs)
        with experts_of_rows(self.experts, self._row_dispatcher.config):
            return super().routed_experts_compute(hidden_states, probs)

    def postprocess(self, output: Tensor, shared_expert_output: Tensor | None) -> Tensor:
        """The layer's output [S, B, H]; on a competing step from the winners' rows, with the losses attached."""
        outcome, self._outcome = self._outcome, None
        crossing, self._crossing = self._crossing, None
        if crossing is None:
            return super().postprocess(output, shared_expert_output)
        if outcome is None:  # by utility
            return crossing.arrive(super().postprocess(output, shared_expert_output))[0]
        self.token_dispatcher = self._normal_dispatcher
        output, logits, responses_TE = crossing.arrive(output)
        outcome = dataclasses.replace(outcome, logits=logits)
        rows_TKH, others = self._row_dispatcher.rows_by_token(output, outcome.winners_TK.shape[1], outcome.sample)
        if self.latent is not None:
            rows_TKH = self.latent.contributions(rows_TKH)
            others = None if others is None else self.latent.contributions(others)
        responses_TK = self.response(rows_TKH)
        weights_TK = competition_weights(responses_TK, self.router.weight_sum(outcome.logits, outcome.choice_TE))
        combined_TH = (weights_TK.unsqueeze(-1) * rows_TKH).sum(dim=1).to(output.dtype)
        combined_TH = outcome.sample.put(others, combined_TH)
        if torch.is_grad_enabled():
            responses_TE = responses_TE.scatter(1, outcome.winners_TK, responses_TK)
            combined_TH = self.losses.attach(combined_TH, rows_TKH, responses_TE, outcome, self.layer_number)
        combined = combined_TH.view(*self._row_dispatcher.hidden_shape[:-1], combined_TH.shape[-1])
        if self.latent is not None:
            combined = self.latent.add_bias(combined)
        if self._row_dispatcher.shared_experts is not None:  # overlapped: computed between dispatch and combine
            shared_expert_output = self._row_dispatcher.shared_experts.get_output()
        return combined if shared_expert_output is None else combined + shared_expert_output

    def _route_by_router(
        self, utility: UtilityCompetition, hidden_states: Tensor, padding_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """As at a normal step; the backward pass scores by the gradient of the output, which `postprocess` keeps."""
        with self.router.keep_logits() as kept:
            probs_TE, routing_map_TE = super().route(hidden_states, padding_mask)
        # the dispatcher pads for quantisation within the map that it is given (upstream: `pad_routing_map`)
        choice_TE = self.router.chosen(kept[0], routing_map_TE).clone()
        self._crossing = crossing = Crossing()
        sample, valid_T = self._sample(hidden_states), valid_tokens(padding_mask)
        probs_TE = utility.depart(crossing, sample, probs_TE, hidden_states, kept[0], choice_TE, valid_T)
        return probs_TE, routing_map_TE

    def _sample(self, hidden_states: Tensor) -> AllTokens:
        """The tokens that compete at the current step, of this rank's [S, B, H]."""
        seed, step = self.competition.schedule.seed, self.competition.current_step()
        return self.sampler.draw(hidden_states, seed=seed, step=step, layer_number=self.layer_number)

    def _compete(self, hidden_states: Tensor, padding_mask: Tensor | None) -> tuple[Outcome, Tensor, Tensor]:
        """Let all experts answer the tokens that compete: what came of it, and the routing weights and map [T, E] of all
        tokens, with ones on the winners."""
        sample = self._sample(hidden_states)
        logits, probs_TE, choice_TE, normal_map_TE = self._ask_router(hidden_states, padding_mask, sample)
        outcome = self._choose_winners(hidden_states, padding_mask, logits, choice_TE, sample)
        won_TE = winners_map(outcome.winners_TK, self.config.num_moe_experts)
        routing_map_TE = sample.put(normal_map_TE, won_TE)
        self.router.observe_routing(logits, routing_map_TE, padding_mask)
        return outcome, sample.put(probs_TE, won_TE.to(logits.dtype)), routing_map_TE

    def _choose_winners(
        self,
        hidden_states: Tensor,
        padding_mask: Tensor | None,
        logits: Tensor,
        choice_TE: Tensor,
        sample: AllTokens,
    ) -> Outcome:
        """Score all experts for the tokens that compete, and choose their winners.

        Under activation recompute a layer's forward pass runs twice: first without gradient, again in the backward
        pass. Microbatches come back in the order they went, so the first pass leaves its winners in a queue and the
        second takes them from there: one scoring pass, and no rounding flip between the two.
        """
        logits, choice_TE = sample.take(logits.reshape(choice_TE.shape)), sample.take(choice_TE)
        step = self.competition.current_step()
        recomputes = torch.is_grad_enabled() and len(self._first_pass) > 0
        if recomputes:
            outcome = dataclasses.replace(self._first_pass.popleft(), logits=logits, choice_TE=choice_TE)
            assert outcome.step == step, f"winners of step {outcome.step} left over at step {step}"
            return outcome
        tokens_TH = sample.take(hidden_states.detach().reshape(-1, hidden_states.shape[-1]))
        responses_TE = self.score(tokens_TH)
        scores_TE, valid_T = responses_TE, valid_tokens(padding_mask)
        if self.centering is not None:
            with torch.no_grad():
                scores_TE = self.centering(responses_TE, None if valid_T is None else sample.take(valid_T))
        ranked_TE = logits.detach() if self.router.forces_load else scores_TE
        winners_TK = choose_winners(ranked_TE, self.router.rule)
        outcome = Outcome(
            responses_TE, scores_TE, winners_TK, logits, choice_TE, sample, valid_T, hidden_states.shape[1], step
        )
        if not torch.is_grad_enabled():
            self._first_pass.append(dataclasses.replace(outcome, logits=None, choice_TE=None))
        return outcome

    def _ask_router(
        self, hidden_states: Tensor, padding_mask: Tensor | None, sample: AllTokens
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The router's logits [S, B, E], weights, choice and routing map [T, E] at a competing step, with its losses and
        counts.

        Called as a module, because `--overlap-param-gather` waits for weights in hooks of a module's call.
        """
        with self.router.keep_logits() as kept:
            probs_TE, routing_map_TE = self.router(hidden_states, padding_mask, competing=sample)
        logits = AlsoReaching.apply(kept[0], probs_TE)
        return logits, probs_TE, self.router.chosen(kept[0], routing_map_TE), routing_map_TE

    def _all_responses(self, outcome: Outcome, hidden_states: Tensor) -> Tensor:
        """The scored responses [T, E]; with `--compete-response-gradients all` differentiable in every expert."""
        if self.competition.config.response_gradients == "winners":
            return outcome.responses_TE
        plan = Recomputation(self.experts, self.response, self.groups, self.competition.config.score_chunk_tokens)
        tokens_TH = outcome.sample.take(hidden_states.reshape(-1, hidden_states.shape[-1]))
        return AllResponses.apply(plan, outcome.responses_TE, tokens_TH, *self.experts.parameters())


def with_compete_router(submodules: MoESubmodules, competition: Competition) -> MoESubmodules:
    """`submodules` with the router of `moe/router.py`."""
    if submodules.router is not TopKRouter:
        raise CompeteError(f"competition extends Megatron's TopKRouter, and this layer's router is {submodules.router}")
    losses = RouterLosses.of(competition.config)
    return dataclasses.replace(submodules, router=functools.partial(CompeteRouter, losses=losses))
