"""What a token may be routed to and what its weights sum to, against upstream's own router."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.transformer.moe.moe_utils import group_limited_topk, topk_routing_with_score_function

from megatron_compete.routing.rule import RouterRule
from megatron_compete.routing.winners import choose_winners, winners_map

EXPERTS, TOKENS = 16, 200
GROUPS: list[dict[str, Any]] = [
    dict(moe_router_topk=4),
    dict(moe_router_topk=4, moe_router_num_groups=4, moe_router_group_topk=2),
    dict(moe_router_topk=3, moe_router_num_groups=8, moe_router_group_topk=2),
    dict(moe_router_topk=3, moe_router_num_groups=4, moe_router_group_topk=1),
    dict(moe_router_topk=4, moe_router_num_groups=4, moe_router_group_topk=4),
    dict(moe_router_topk=4, moe_router_num_groups=4),  # names no number of groups a token may use: no limit
]
WEIGHTS: list[dict[str, Any]] = [
    dict(),
    dict(moe_router_topk_scaling_factor=2.5),
    dict(moe_router_pre_softmax=True),
    dict(moe_router_pre_softmax=True, moe_router_topk_scaling_factor=16.0),
]


def scores(seed: int = 0) -> torch.Tensor:
    """Some negative, as centred responses are."""
    return torch.randn(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(seed))


def upstream(logits: torch.Tensor, settings: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Megatron's probabilities and routing map at a normal step."""
    given = SimpleNamespace(**settings)
    return topk_routing_with_score_function(
        logits,
        given.moe_router_topk,
        use_pre_softmax=getattr(given, "moe_router_pre_softmax", False),
        num_groups=getattr(given, "moe_router_num_groups", None),
        group_topk=getattr(given, "moe_router_group_topk", None),
        scaling_factor=getattr(given, "moe_router_topk_scaling_factor", None),
    )


@pytest.mark.parametrize("settings", GROUPS, ids=str)
def test_the_best_are_those_that_upstream_chooses(settings: dict[str, Any]) -> None:
    """Of the same scores the same experts, in the same order."""
    rule = RouterRule.of(settings)
    _, routing_map = upstream(scores(), settings)
    assert torch.equal(winners_map(choose_winners(scores(), rule), EXPERTS), routing_map)
    if settings.get("moe_router_group_topk"):
        groups, chosen = settings["moe_router_num_groups"], settings["moe_router_group_topk"]
        _, best = group_limited_topk(scores(), rule.top_k, TOKENS, EXPERTS, groups, chosen)
        assert torch.equal(rule.best(scores()), best)
        used = routing_map.unflatten(1, (groups, -1)).any(-1).sum(1)
        assert used.max() <= chosen


@pytest.mark.parametrize("settings", [a | b for a, b in itertools.product(GROUPS, WEIGHTS)], ids=str)
def test_weights_sum_to_what_upstreams_sum_to(settings: dict[str, Any]) -> None:
    """Groups are ranked by probabilities where the softmax comes first, and by logits otherwise."""
    logits = 3 * scores(1).requires_grad_()
    total = RouterRule.of(settings).weight_sum(logits)
    expected = upstream(logits, settings)[0].sum(1, keepdim=True)
    torch.testing.assert_close(torch.as_tensor(total).expand(TOKENS, 1), expected)
    assert isinstance(total, float) or not total.requires_grad


def test_the_default_sum_is_one_to_the_bit() -> None:
    assert RouterRule.of(dict(moe_router_topk=2, moe_router_topk_scaling_factor=None)).weight_sum(scores()) == 1.0


@pytest.mark.parametrize("settings", GROUPS, ids=str)
def test_a_rank_may_hold_no_token(settings: dict[str, Any]) -> None:
    rule = RouterRule.of(settings)
    assert rule.best(scores()[:0]).shape == (0, rule.top_k)
    pre_softmax = RouterRule.of(settings | dict(moe_router_pre_softmax=True))
    assert torch.as_tensor(pre_softmax.weight_sum(scores()[:0])).shape == (0, 1)
