"""The rule by which a router chooses a token's experts and weighs them; a competing step keeps to it too.

T tokens, E experts, K experts a token. The names are those of Megatron's settings, whose meaning upstream's
`topk_routing_with_score_function` defines.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class RouterRule:
    """Which experts a token may go to, and what its weights sum to."""

    top_k: int
    """K"""
    scaling_factor: float = 1.0
    """Factor of all weights (--moe-router-topk-scaling-factor)."""
    normalized: bool = True
    """Whether a token's K weights are brought to sum 1 before that factor: a softmax over the chosen logits, or scores
    over their sum. If not (--moe-router-pre-softmax) they are shares of the softmax over all experts."""
    num_groups: int = 1
    """Groups of equal size that the experts are divided into; 1: no limit."""
    group_top_k: int = 1
    """Groups that a token's experts may come from."""

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "RouterRule":
        """The rule of Megatron's settings by name: of a `TransformerConfig`, a command line or a checkpoint."""
        top_k = int(settings.get("moe_router_topk") or 2)  # Megatron's default
        group_top_k = int(settings.get("moe_router_group_topk") or 0)
        softmax = (settings.get("moe_router_score_function") or "softmax") == "softmax"
        return cls(
            top_k,
            scaling_factor=float(settings.get("moe_router_topk_scaling_factor") or 1.0),
            normalized=not settings.get("moe_router_pre_softmax") if softmax else top_k > 1,
            num_groups=int(settings["moe_router_num_groups"]) if group_top_k else 1,
            group_top_k=group_top_k or 1,
        )

    @property
    def experts_per_group_score(self) -> int:
        """Best experts of a group whose scores are summed to rank it."""
        return self.top_k // self.group_top_k if self.num_groups > 1 else 1

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

    def weight_sum(self, logits_TE: Tensor) -> Tensor | float:
        """What the weights that the router gives a token sum to, without gradient: one number, or fp32 [T, 1].

        scaling_factor where the weights are normalized. Otherwise scaling_factor * sum of p over the K experts that
        the router would choose, with p its softmax over all experts.
        """
        if self.normalized:
            return self.scaling_factor
        probs_TE = logits_TE.detach().softmax(dim=-1, dtype=torch.float32)
        return self.scaling_factor * probs_TE.gather(1, self.best(probs_TE)).sum(dim=-1, keepdim=True)
