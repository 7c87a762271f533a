"""The router of the own architecture, whose code imports nothing of this package, is the one that training had."""

import itertools
from typing import Any

import pytest
import torch
from megatron.core.transformer.moe.moe_utils import topk_routing_with_score_function

from megatron_compete.checkpoint.custom_code.configuration_competesmoe import CompeteSMoEConfig
from megatron_compete.checkpoint.custom_code.modeling_competesmoe import CompeteSMoERouter
from megatron_compete.checkpoint.families import FAMILIES, Dimensions
from megatron_compete.routing.rule import RouterRule
from tests.checkpoint import gpt

TOKENS, EXPERTS = 200, 8
SCORES: list[dict[str, Any]] = [
    {"moe_router_score_function": "softmax"},
    {"moe_router_score_function": "softmax", "moe_router_pre_softmax": True},
    {"moe_router_score_function": "sigmoid"},
    {"moe_router_score_function": "sigmoid", "moe_router_enable_expert_bias": True},
    {"moe_router_score_function": "sqrtsoftplus"},
    {"moe_router_score_function": "sqrtsoftplus", "moe_router_enable_expert_bias": True},
]
CHOICES: list[dict[str, Any]] = [
    {"moe_router_topk": 1},
    {"moe_router_topk": 3, "moe_router_topk_scaling_factor": 2.5},
    {"moe_router_topk": 4, "moe_router_num_groups": 4, "moe_router_group_topk": 2},
    {
        "moe_router_topk": 2,
        "moe_router_num_groups": 4,
        "moe_router_group_topk": 2,
        "moe_router_topk_scaling_factor": 16.0,
    },
]


@pytest.mark.parametrize("settings", [one | other for one, other in itertools.product(SCORES, CHOICES)], ids=str)
def test_its_router_is_the_rule_of_training_and_megatrons(settings: dict[str, Any]) -> None:
    arguments = gpt.ARGUMENTS | {"num_experts": EXPERTS, "hidden_size": EXPERTS} | settings
    FAMILIES["competesmoe"].check(arguments)
    config = CompeteSMoEConfig(**FAMILIES["competesmoe"].to_config(Dimensions.from_arguments(arguments), arguments))
    router = CompeteSMoERouter(config)
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(TOKENS, EXPERTS, generator=generator) * 2
    bias = torch.randn(EXPERTS, generator=generator) * 0.3 if config.score_correction_bias else None
    with torch.no_grad():
        router.weight.copy_(torch.eye(EXPERTS))  # what comes in is the logits
        if bias is not None:
            router.e_score_correction_bias.copy_(bias)
        _, weights, experts = router(logits)
    rule = RouterRule.of(arguments)
    found = torch.zeros(TOKENS, EXPERTS).scatter(1, experts, weights)
    wanted, chosen = topk_routing_with_score_function(
        logits,
        rule.top_k,
        use_pre_softmax=rule.pre_softmax,
        num_groups=arguments.get("moe_router_num_groups"),
        group_topk=arguments.get("moe_router_group_topk"),
        scaling_factor=arguments.get("moe_router_topk_scaling_factor"),
        score_function=rule.score_function,
        expert_bias=bias,
    )
    assert experts.sort().values.equal(rule.choice(logits, bias).sort().values)
    assert (found > 0).equal(chosen)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(router.scores(logits), rule.scores(logits))
