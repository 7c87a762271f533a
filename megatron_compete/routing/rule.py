"""The rule by which a router chooses a token's experts and weighs them; a competing step keeps to it too.

One place says for a config what the router's scores and probabilities are, which experts may be chosen, and what a
token's weights sum to. Response, utility, distillation, agreement and export ask it. T tokens, E experts, K experts a
token. The names are those of Megatron's settings; upstream's `topk_routing_with_score_function` and
`compute_routing_scores_for_aux_loss` (moe_utils.py) define what they mean.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Function = Callable[[Tensor], Tensor]


def sqrt_softplus(logits: Tensor) -> Tensor:
    """sqrt(log(1 + exp z))"""
    return F.softplus(logits).sqrt()


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(dim=-1)


SCORES: dict[str, Function] = {"softmax": _softmax, "sigmoid": torch.sigmoid, "sqrtsoftplus": sqrt_softplus}
"""Score functions that `--moe-router-score-function` can name, of logits [T, E]."""

SLOPES: dict[str, Function] = {
    "softmax": _softmax,
    "sigmoid": lambda z: torch.sigmoid(z) * torch.sigmoid(-z),
    # far below zero both underflow: 0 rather than 0 / 0
    "sqrtsoftplus": lambda z: torch.sigmoid(z) / (2 * sqrt_softplus(z)).clamp_min(torch.finfo(z.dtype).tiny),
}
"""ds_j / dz_j; for a softmax with its denominator held, d exp(z_j) / dz_j in units of it."""


@dataclass(frozen=True)
class RouterRule:
    """Which experts a token may go to, and what its weights sum to."""

    top_k: int
    """K"""
    score_function: str = "softmax"
    """softmax (over all experts), sigmoid or sqrtsoftplus."""
    pre_softmax: bool = False
    """Whether a softmax's weights are shares of it over all experts, rather than a softmax over the K chosen logits."""
    scaling_factor: float = 1.0
    """Factor of all weights (--moe-router-topk-scaling-factor)."""
    num_groups: int = 1
    """Groups of equal size that the experts are divided into; 1: no limit."""
    group_top_k: int = 1
    """Groups that a token's experts may come from."""
    by_logits: bool = True
    """Whether experts are ranked by logits rather than by scores."""

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "RouterRule":
        """The rule of Megatron's settings by name: of a `TransformerConfig`, a command line or a checkpoint."""
        top_k = int(settings.get("moe_router_topk") or 2)  # Megatron's default
        balancing = settings.get("moe_router_load_balancing_type")
        if balancing == "sinkhorn":  # upstream: `TopKRouter.sinkhorn_load_balancing`
            return cls(top_k, "sigmoid" if top_k == 1 else "softmax", pre_softmax=True, by_logits=False)
        group_top_k = int(settings.get("moe_router_group_topk") or 0)
        score_function = settings.get("moe_router_score_function") or "softmax"
        pre_softmax = score_function == "softmax" and bool(settings.get("moe_router_pre_softmax"))
        return cls(
            top_k,
            score_function,
            pre_softmax,
            scaling_factor=float(settings.get("moe_router_topk_scaling_factor") or 1.0),
            num_groups=int(settings["moe_router_num_groups"]) if group_top_k else 1,
            group_top_k=group_top_k or 1,
            by_logits=balancing == "quantile_balancing" or (score_function == "softmax" and not pre_softmax),
        )

    @property
    def normalized(self) -> bool:
        """Whether a token's K weights are brought to sum 1 before the factor: a softmax over the chosen logits, or
        scores over their sum, which upstream leaves out where K = 1."""
        return not self.pre_softmax if self.score_function == "softmax" else self.top_k > 1

    @property
    def shares(self) -> bool:
        """Whether the weight of an expert depends on the other experts' scores: always, but for one sigmoid score."""
        return self.normalized or self.score_function == "softmax"

    @property
    def experts_per_group_score(self) -> int:
        """Best experts of a group whose scores are summed to rank it."""
        return self.top_k // self.group_top_k if self.num_groups > 1 else 1

    def scores(self, logits_TE: Tensor) -> Tensor:
        """s, what the router gives each expert: fp32 [T, E], without bias and factor."""
        return SCORES[self.score_function](logits_TE.float())

    def slopes(self, logits_TE: Tensor) -> Tensor:
        """s', how a score changes with its own logit: fp32 [T, E]; for a softmax with its denominator held."""
        return SLOPES[self.score_function](logits_TE.float())

    def probabilities(self, logits_TE: Tensor) -> Tensor:
        """p = s / sum_e s_e over all experts, fp32 [T, E]; the p of the paper.

        Of a softmax these are its values; a bias, whose part is to choose, is not in them (upstream:
        `compute_routing_scores_for_aux_loss`).
        """
        scores_TE = self.scores(logits_TE)
        if self.score_function == "softmax":
            return scores_TE
        return scores_TE / (scores_TE.sum(dim=-1, keepdim=True) + 1e-20)

    def choice(self, logits_TE: Tensor, bias_E: Tensor | None = None) -> Tensor:
        """The K experts that a normal step chooses, before any is dropped for capacity: int64 [T, K], best first.

        Args:
            bias_E: added to what experts are ranked by: Megatron's expert bias (DeepSeek-V3, arXiv 2412.19437, section
                2.1.2), or minus the one of its quantile balancing.
        """
        ranked_TE = logits_TE if self.by_logits else self.scores(logits_TE)
        return self.best(ranked_TE if bias_E is None else ranked_TE.float() + bias_E.float())

    def best(self, scores_TE: Tensor) -> Tensor:
        """The K experts with the highest scores among those that may be chosen, best first: int64 [T, K].

        With groups these are the experts of each token's `group_top_k` best groups, a group being as good as the sum
        of its best K / group_top_k scores (DeepSeek-V2 and V3, arXiv 2412.19437 section 2.1.2; upstream:
        `group_limited_topk`, which needs at least one token).
        """
        if self.num_groups > 1:
            scores_TE = self._within_groups(scores_TE)
        return scores_TE.topk(self.top_k, dim=-1).indices

    def _within_groups(self, scores_TE: Tensor) -> Tensor:
        """The scores, minus infinity for experts outside of their token's best groups."""
        by_group_TGM = scores_TE.unflatten(1, (self.num_groups, scores_TE.shape[1] // self.num_groups))
        groups_TG = by_group_TGM.topk(self.experts_per_group_score, dim=-1).values.sum(dim=-1)
        best = groups_TG.topk(self.group_top_k, dim=-1).indices
        outside_TG = torch.ones_like(groups_TG, dtype=torch.bool).scatter(1, best, False)
        return by_group_TGM.masked_fill(outside_TG.unsqueeze(-1), -torch.inf).flatten(1)

    def weight_sum(self, logits_TE: Tensor, routing_map_TE: Tensor) -> Tensor | float:
        """What the weights that the router gives a token sum to, without gradient: one number, or fp32 [T, 1].

        scaling_factor where the weights are normalized. Otherwise scaling_factor * sum of s over the experts chosen: of
        the softmax over all experts, or of one sigmoid (K = 1).

        Args:
            routing_map_TE: the router's choice, bool.
        """
        if self.normalized:
            return self.scaling_factor
        scores_TE = self.scores(logits_TE.detach())
        return self.scaling_factor * (scores_TE * routing_map_TE).sum(dim=-1, keepdim=True)
