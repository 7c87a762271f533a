"""What a token may be routed to and what its weights sum to, against upstream's own router."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.transformer.moe.moe_utils import (
    compute_routing_scores_for_aux_loss,
    group_limited_topk,
    qb_dual_update,
    topk_routing_with_score_function,
)
from megatron.core.transformer.moe.router import TopKRouter

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
    dict(moe_router_score_function="sigmoid"),
    dict(moe_router_score_function="sigmoid", moe_router_pre_softmax=True, moe_router_topk_scaling_factor=2.5),
    dict(moe_router_score_function="sqrtsoftplus", moe_router_topk_scaling_factor=1.5),
]
ONE: list[dict[str, Any]] = [
    dict(moe_router_topk=1) | weights | groups
    for weights in WEIGHTS
    for groups in (dict(), dict(moe_router_num_groups=4, moe_router_group_topk=1))
    if weights.get("moe_router_score_function") or weights.get("moe_router_pre_softmax")  # else upstream refuses K = 1
]
SETTINGS = [a | b for a, b in itertools.product(GROUPS, WEIGHTS)] + ONE


def scores(seed: int = 0) -> torch.Tensor:
    """Some negative, as centred responses are."""
    return torch.randn(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(seed))


def upstream(
    logits: torch.Tensor, settings: dict[str, Any], bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Megatron's probabilities and routing map at a normal step."""
    given = SimpleNamespace(**settings)
    return topk_routing_with_score_function(
        logits,
        given.moe_router_topk,
        use_pre_softmax=getattr(given, "moe_router_pre_softmax", False),
        num_groups=getattr(given, "moe_router_num_groups", None),
        group_topk=getattr(given, "moe_router_group_topk", None),
        scaling_factor=getattr(given, "moe_router_topk_scaling_factor", None),
        score_function=getattr(given, "moe_router_score_function", "softmax"),
        expert_bias=bias,
    )


def biases(settings: dict[str, Any]) -> list[torch.Tensor | None]:
    """An expert bias too, where upstream takes one."""
    biased = settings.get("moe_router_score_function") in ("sigmoid", "sqrtsoftplus")
    return [None, 0.3 * torch.randn(EXPERTS, generator=torch.Generator().manual_seed(7))] if biased else [None]


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


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_choice_and_weights_are_upstreams(settings: dict[str, Any]) -> None:
    """Groups are ranked by probabilities where the softmax comes first, by logits otherwise, and by biased scores."""
    logits, rule = 3 * scores(1).requires_grad_(), RouterRule.of(settings)
    for bias in biases(settings):
        probs, routing_map = upstream(logits, settings, bias)
        assert torch.equal(winners_map(rule.choice(logits, bias), EXPERTS), routing_map)
        total = rule.weight_sum(logits, routing_map)
        torch.testing.assert_close(torch.as_tensor(total).expand(TOKENS, 1), probs.sum(1, keepdim=True))
        assert isinstance(total, float) or not total.requires_grad


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_probabilities_are_those_of_upstreams_balance_losses(settings: dict[str, Any]) -> None:
    logits, rule = 3 * scores(2), RouterRule.of(settings)
    _, expected = compute_routing_scores_for_aux_loss(logits, rule.top_k, rule.score_function)
    torch.testing.assert_close(rule.probabilities(logits), expected)


def test_a_bias_moves_the_choice() -> None:
    settings = dict(moe_router_topk=2, moe_router_score_function="sigmoid")
    rule, (_, bias) = RouterRule.of(settings), biases(settings)
    assert not torch.equal(rule.choice(scores()), rule.choice(scores(), bias))


@pytest.mark.parametrize("top_k", [1, 4])
def test_sinkhorn_weighs_by_shares_that_nothing_scales(top_k: int) -> None:
    """Upstream: `TopKRouter.sinkhorn_load_balancing`."""
    settings = dict(
        moe_router_topk=top_k, moe_router_load_balancing_type="sinkhorn", moe_router_topk_scaling_factor=2.5,
        moe_router_num_groups=4, moe_router_group_topk=2,
    )  # fmt: skip
    logits = scores()
    router = SimpleNamespace(topk=top_k, training=False, config=SimpleNamespace(moe_aux_loss_coeff=0))
    weights, routing_map = TopKRouter.sinkhorn_load_balancing(router, logits)  # type: ignore[arg-type]
    total = RouterRule.of(settings).weight_sum(logits, routing_map)
    torch.testing.assert_close(total, weights.sum(1, keepdim=True))
    assert torch.equal(winners_map(RouterRule.of(settings).choice(logits), EXPERTS), routing_map)


def test_quantile_balancing_ranks_logits() -> None:
    """Upstream: `qb_dual_update`."""
    beta = 0.3 * torch.randn(EXPERTS)
    for settings in WEIGHTS:
        rule = RouterRule.of(dict(moe_router_topk=3, moe_router_load_balancing_type="quantile_balancing") | settings)
        expected, _ = qb_dual_update(scores(), 3, beta, update_beta=False)
        assert torch.equal(rule.choice(scores(), -beta), expected)


def test_the_default_sum_is_one_to_the_bit() -> None:
    rule = RouterRule.of(dict(moe_router_topk=2, moe_router_topk_scaling_factor=None))
    assert rule.weight_sum(scores(), scores() > 0) == 1.0


@pytest.mark.parametrize("settings", GROUPS, ids=str)
def test_a_rank_may_hold_no_token(settings: dict[str, Any]) -> None:
    rule = RouterRule.of(settings)
    assert rule.best(scores()[:0]).shape == (0, rule.top_k)
    pre_softmax, logits = RouterRule.of(settings | dict(moe_router_pre_softmax=True)), scores()[:0]
    assert torch.as_tensor(pre_softmax.weight_sum(logits, logits > 0)).shape == (0, 1)
