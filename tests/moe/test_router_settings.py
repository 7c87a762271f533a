"""A competing step beside a normal one under Megatron's settings of the router: scaling factor, pre-softmax, groups."""

import dataclasses
from typing import Any

import pytest
import torch

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig
from tests.moe import layouts
from tests.moe.layouts import BATCH, EXPERTS, FFN, HIDDEN, SEQUENCE, WINNERS, Layout, transformer_config
from tests.moe.reference import Router, Weights
from tests.moe.steps import Case, check, random_batch
from tests.moe.test_layouts import FRACTION, OPTIONS, STRONG, UTILITY
from tests.ranks import run_rank

BIAS = (0.3, -0.2, 0.1, 0.0, -0.4, 0.2, 0.05, -0.1)
SETTINGS = {
    "scaled": Router(scale=2.5),
    "pre-softmax": Router(pre_softmax=True),
    "pre-softmax, scaled": Router(scale=16.0, pre_softmax=True),
    "groups": Router(groups=(4, 2)),
    "groups of one": Router(groups=(2, 1)),
    "all of softmax": Router(scale=2.5, pre_softmax=True, groups=(4, 2)),
    "sigmoid": Router(function="sigmoid"),
    "sigmoid, bias, groups": Router(function="sigmoid", scale=2.5, bias=BIAS, groups=(4, 2)),
    "sqrtsoftplus": Router(function="sqrtsoftplus", scale=1.5, bias=BIAS),
    "capacity": Router(capacity=0.7),
    "capacity, sigmoid, padded": Router(capacity=0.7, pads=True, function="sigmoid", scale=2.5),
}
ONE_EXPERT = {
    "one, pre-softmax": Router(pre_softmax=True),
    "one, sigmoid": Router(function="sigmoid", scale=2.5, bias=BIAS),
    "one, sqrtsoftplus": Router(function="sqrtsoftplus"),
}
"""Of K = 1."""
LAYOUTS = [Layout(), Layout(world=2, ep=2), Layout(world=4, tp=2, ep=2)]
ON_SEVERAL_RANKS = ("all of softmax", "sigmoid, bias, groups", "capacity, sigmoid, padded")
"""In `make test`: the rule is asked token by token, so these, which have all settings, tell of the others."""


def cases(router: Router) -> dict[str, Case]:
    kinds = {"response": STRONG, "options": OPTIONS, "utility": UTILITY}
    if not router.pre_softmax:
        kinds["utility-missing"] = dataclasses.replace(UTILITY, utility_gradient="missing")
    kinds |= {f"sampled-{name}": dataclasses.replace(config, token_fraction=FRACTION) for name, config in kinds.items()}
    competing = {name: Case(config, router=router) for name, config in kinds.items()}
    return competing | {"normal": Case(STRONG, competes=False, router=router)}


@pytest.mark.parametrize(
    "name, layout",
    [
        pytest.param(name, layout, marks=() if layout.world == 1 or name in ON_SEVERAL_RANKS else pytest.mark.slow)
        for name in SETTINGS
        for layout in LAYOUTS
    ],
    ids=str,
)
def test_layer_equals_dense_reference(name: str, layout: Layout) -> None:
    router = dataclasses.replace(SETTINGS[name], shards=layout.tp * layout.cp)
    check(layout, random_batch(layout, SEQUENCE, BATCH), cases(router), **router.overrides())


@pytest.mark.parametrize("name", ONE_EXPERT)
def test_one_expert_a_token_equals_dense_reference(name: str) -> None:
    router = ONE_EXPERT[name]
    check(Layout(), random_batch(Layout(), SEQUENCE, BATCH), cases(router), moe_router_topk=1, **router.overrides())


INIT_STD = 0.02
"""Of Megatron's weights at initialisation."""


def scale_and_groups(router: Router, top_k: int) -> tuple[float, int]:
    """Mean output norm of a competing step over that of a normal one with the same fresh weights, and the most groups
    that a token goes to at the competing one."""
    layouts.initialize(Layout())
    weights = Weights.random(EXPERTS, HIDDEN, FFN)
    weights = weights.map(lambda weight: weight / weight.std() * INIT_STD)
    tokens = torch.randn(256, 1, HIDDEN, generator=torch.Generator().manual_seed(5))
    norms = []
    with torch.no_grad():
        for rate in (1.0, 0.0):
            layer = layouts.build_layer(
                Layout(), weights, CompeteConfig(rate=rate, max_active_layers=1), moe_router_topk=top_k,
                **router.overrides(),
            )  # fmt: skip
            norms.append(float(layer(tokens)[0].norm(dim=-1).mean()))
            if rate:
                used = layer.route(tokens)[1].unflatten(1, ((router.groups or (1, 1))[0], -1)).any(-1).sum(1)
    return norms[0] / norms[1], int(used.max())


@pytest.mark.parametrize("name", ["default", *(name for name in SETTINGS if "capacity" not in name), *ONE_EXPERT])
def test_output_keeps_its_scale_and_tokens_their_groups(name: str) -> None:
    """At initialisation. What a capacity drops is missing from a normal step alone."""
    router = (SETTINGS | ONE_EXPERT).get(name, Router())
    ratio, groups = run_rank(scale_and_groups, router, 1 if name in ONE_EXPERT else WINNERS)
    assert 0.8 < ratio < 1.2
    assert groups <= (router.groups or (1, 1))[1]


@pytest.mark.parametrize(
    "settings, said",
    [
        (dict(moe_router_num_groups=8, moe_router_group_topk=2), "leaves a token 2 of 8 experts, fewer than"),
        (dict(moe_router_num_groups=4, moe_router_group_topk=4), "by its best 0 experts"),
        (dict(moe_apply_probs_on_input=True, moe_router_topk=1, moe_router_pre_softmax=True), "--moe-apply-probs-on"),
    ],
    ids=str,
)
def test_settings_without_a_meaning_are_refused(settings: dict[str, Any], said: str) -> None:
    from megatron_compete.moe.validation import check_supported

    with pytest.raises(CompeteError, match=said):
        check_supported(transformer_config(Layout(), **settings), CompeteConfig())


@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_router_of_a_precision_of_its_own_equals_dense_reference(dtype: str) -> None:
    router = SETTINGS["sigmoid, bias, groups"]
    overrides = router.overrides() | {"moe_router_dtype": dtype}
    check(Layout(), random_batch(Layout(), SEQUENCE, BATCH), cases(router), **overrides)
