"""One MoE layer with each router, the experts' weights alike, and a task on which they adapt.

T tokens, E experts, K experts per token, H hidden size.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.moe_utils import get_default_pg_collection, get_updated_expert_bias
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.variants import device, transformer_config
from megatron_compete.config import CompeteConfig
from megatron_compete.moe.baselines.config import BaselineConfig
from megatron_compete.moe.baselines.step import end_step
from megatron_compete.moe.baselines.variable import VariableRouter
from megatron_compete.moe.competition import Competition
from megatron_compete.moe.layer import CompeteMoELayer
from megatron_compete.moe.specs import with_baseline
from megatron_compete.routing.winners import competition_weights

BALANCED = {"moe_router_load_balancing_type": "aux_loss", "moe_aux_loss_coeff": 0.01}
LEARNING_RATE = 3e-3


@dataclass(frozen=True)
class Router:
    """What is built: a baseline by its name, a competition, or neither, which is Megatron's own layer."""

    label: str
    settings: dict[str, Any] = field(default_factory=dict)
    """Megatron's, beside the case's."""
    baseline: str | None = None
    compete: CompeteConfig | None = None
    shares_an_expert: bool = False
    """One of the E experts, and of a token's K, is shared by all tokens."""


ROUTERS: dict[str, Router] = {
    "topk": Router("SMoE (top-K)", BALANCED),
    "sigmoid": Router("sigmoid", BALANCED | {"moe_router_score_function": "sigmoid"}),
    "shared-v2": Router("SharedE-V2", BALANCED | {"moe_router_pre_softmax": True}, shares_an_expert=True),
    "shared-v3": Router(
        "SharedE-V3",
        {
            "moe_router_score_function": "sigmoid",
            "moe_router_enable_expert_bias": True,
            "moe_router_load_balancing_type": "seq_aux_loss",
            "moe_aux_loss_coeff": 1e-4,
        },
        shares_an_expert=True,
    ),
    "xmoe": Router("XMoE", BALANCED, baseline="xmoe"),
    "cosine": Router("perturbed cosine", BALANCED, baseline="cosine"),
    "remoe": Router("ReMoE", baseline="remoe"),
    "usmoe": Router("USMoE", BALANCED, baseline="usmoe"),
    "default-moe": Router("Default MoE", baseline="default-moe"),
    "threshold": Router("Expert-Threshold", baseline="threshold"),
    "frozen": Router("frozen", baseline="frozen"),
    "response": Router("competition by response", compete=CompeteConfig(max_active_layers=1)),
    "utility": Router("competition by utility", compete=CompeteConfig(kind="utility", max_active_layers=1)),
}


class RoutedLayer:
    """A layer with its optimizer and the step that it is in."""

    def __init__(self, router: Router, case: Case, dtype: torch.dtype) -> None:
        self.router = router
        self.step = 0
        self.competition: Competition | None = None
        self.layer = self._build(case, dtype)
        _spread_weights(self.layer)
        self.layer.set_layer_number(1)
        self.layer.to(device()).train()
        self.optimizer = torch.optim.Adam(self.layer.parameters(), LEARNING_RATE)

    def _build(self, case: Case, dtype: torch.dtype) -> MoELayer:
        settings = dict(self.router.settings)
        if self.router.shares_an_expert:
            settings |= {"num_moe_experts": case.experts - 1, "moe_router_topk": case.topk - 1}
            settings["moe_shared_expert_intermediate_size"] = case.ffn
        config, groups = transformer_config(case, dtype, False, **settings), get_default_pg_collection()
        stock = get_moe_module_spec(use_te=False, num_experts=config.num_moe_experts, moe_grouped_gemm=False)
        if self.router.baseline is not None:
            return with_baseline(stock, self.router.baseline, BaselineConfig())(config, pg_collection=groups)
        if self.router.compete is None:
            return stock(config, pg_collection=groups)
        self.competition = Competition(self.router.compete, (1,), current_step=lambda: self.step)
        return CompeteMoELayer(config, stock.keywords["submodules"], pg_collection=groups, competition=self.competition)

    def learn(self, tokens: Tensor, targets: Tensor) -> None:
        """One step of training towards `targets` [T, 1, H]."""
        output, _ = self.layer(tokens)
        (output - targets).float().square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.end_step()
        self.step += 1

    def end_step(self) -> None:
        """What Megatron and ours do for routers after the last microbatch (`finalize_model_grads`)."""
        router = self.layer.router
        if router.enable_expert_bias:
            rate = router.config.moe_router_bias_update_rate
            bias = get_updated_expert_bias(
                router.local_tokens_per_expert, router.expert_bias, rate, router.tp_dp_cp_group
            )
            router.expert_bias.copy_(bias)
            router.local_tokens_per_expert.zero_()
        if isinstance(router, VariableRouter):
            end_step([self.layer], router.num_of_model, parallel_state.get_pipeline_model_parallel_group())

    def go_to_competing_step(self) -> None:
        """The first step from here at which the layer competes, if it ever does."""
        while self.competition is not None and not self.competition.is_active(1):
            self.step += 1

    def weights(self, tokens: Tensor) -> Tensor:
        """Each routed expert's weight in the output of each of `tokens` [T, 1, H], [T, E]; 0 where it has no part.

        As in evaluation, but for competition by response: there as at a competing step.
        """
        if self.router.compete is not None and self.router.compete.kind == "response":
            return self._weights_of_winners(tokens)
        self.layer.eval()
        with torch.no_grad():
            weights_TE, chosen_TE = self.layer.route(tokens)
        self.layer.train()
        return weights_TE.float() * chosen_TE

    def _weights_of_winners(self, tokens: Tensor) -> Tensor:
        assert isinstance(self.layer, CompeteMoELayer)
        self.go_to_competing_step()
        _, chosen_TE = self.layer.route(tokens)
        outcome, self.layer._outcome = self.layer._outcome, None
        total = self.layer.router.weight_sum(outcome.logits, outcome.choice_TE)
        weights_TK = competition_weights(outcome.responses_TE.gather(1, outcome.winners_TK), total)
        return torch.zeros_like(chosen_TE, dtype=torch.float32).scatter(1, outcome.winners_TK, weights_TK)


def _spread_weights(layer: MoELayer) -> None:
    """Weights that keep the scale of their input; experts start alike under every router."""
    parts = (layer.router, layer.experts, *([layer.shared_experts] if layer.shared_experts is not None else []))
    with torch.no_grad():
        for seed, part in enumerate(parts):
            random = torch.Generator().manual_seed(seed)
            for weight in part.parameters():
                weight.copy_(torch.randn(weight.shape, generator=random) / weight.shape[-1] ** 0.5)


@dataclass
class Task:
    """Tokens of 2 E kinds, as frequent as Zipf's law has words, each kind with a linear map of its own to learn.

    The kinds give routers something to tell apart, their frequencies give them something to balance.
    """

    centres: Tensor
    maps: Tensor
    frequencies: Tensor

    @classmethod
    def of(cls, case: Case) -> "Task":
        """The task of a case; the same whenever it is asked for."""
        random, kinds, rank = torch.Generator().manual_seed(7), 2 * case.experts, 16
        down, up = (torch.randn(kinds, case.hidden, rank, generator=random) for _ in range(2))
        centres = torch.randn(kinds, case.hidden, generator=random)
        maps = down @ up.transpose(1, 2) / (rank * case.hidden) ** 0.5
        return cls(centres.to(device()), maps.to(device()), 1.0 / torch.arange(1, kinds + 1))

    def draw(self, num_tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens and targets [T, 1, H], and the tokens' kinds [T]; by `seed`."""
        random = torch.Generator().manual_seed(seed)
        kinds_T = torch.multinomial(self.frequencies, num_tokens, replacement=True, generator=random)
        noise = torch.randn(num_tokens, self.centres.shape[1], generator=random).to(device())
        tokens_TH = 0.7 * self.centres[kinds_T] + 0.7 * noise
        targets_TH = torch.empty_like(tokens_TH)
        for kind in kinds_T.unique():
            of_kind = kinds_T == kind
            targets_TH[of_kind] = tokens_TH[of_kind] @ self.maps[kind]
        return tokens_TH.unsqueeze(1), targets_TH.unsqueeze(1), kinds_T
