"""When the layer does not compete it is Megatron's; what it does when it competes is in test_layouts.py and its kin."""

import pytest
import torch

from megatron_compete.common.comparison import relative_difference
from megatron_compete.config import CompeteConfig
from tests.moe import layouts
from tests.moe.layouts import BATCH, EXPERTS, FFN, HIDDEN, SEQUENCE, Layout
from tests.moe.reference import Weights
from tests.moe.steps import random_batch, train_step
from tests.ranks import run_rank, run_ranks

ALWAYS = CompeteConfig(rate=1.0, max_active_layers=1)


def normal_step_equals_stock(layout: Layout) -> None:
    from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec

    weights = Weights.random(EXPERTS, HIDDEN, FFN)
    layouts.initialize(layout)
    settings = dict(moe_aux_loss_coeff=0.1, moe_z_loss_coeff=0.01, moe_router_load_balancing_type="aux_loss")
    ours = layouts.build_layer(layout, weights, CompeteConfig(rate=0.0), **settings)
    stock = get_moe_module_spec(use_te=False, num_experts=EXPERTS)(
        config=layouts.transformer_config(layout, **settings)
    )
    stock.set_layer_number(1)
    layouts.load(stock.train(), weights)
    ours, stock = (train_step(layer, layout, random_batch(layout, SEQUENCE, BATCH)) for layer in (ours, stock))
    for one, other in ((ours.outputs, stock.outputs), (ours.token_grads, stock.token_grads)):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert ours.weight_grads.keys() == stock.weight_grads.keys()
    assert all(torch.equal(grad, stock.weight_grads[name]) for name, grad in ours.weight_grads.items())
    assert all(grad.any() for grad in ours.weight_grads.values())


@pytest.mark.parametrize(
    "layout", [Layout(), Layout(dispatcher="allgather"), Layout(world=4, tp=2, ep=2, etp=2)], ids=str
)
def test_rate_zero_is_megatrons_layer_bit_for_bit(layout: Layout) -> None:
    run_ranks(layout.world, normal_step_equals_stock, layout)


def evaluation_does_not_compete() -> None:
    weights = Weights.random(EXPERTS, HIDDEN, FFN)
    layouts.initialize(Layout())
    tokens = torch.randn(SEQUENCE, BATCH, HIDDEN)
    with torch.no_grad():
        layer = layouts.build_layer(Layout(), weights, ALWAYS)
        evaluated = layer.eval()(tokens)[0]
        normal = layouts.build_layer(Layout(), weights, CompeteConfig(rate=0.0)).eval()(tokens)[0]
        competing = layer.train()(tokens)[0]
    assert torch.equal(evaluated, normal) and relative_difference(competing, normal, "outputs") > 1e-3


def test_evaluation_routes_with_the_router() -> None:
    run_rank(evaluation_does_not_compete)
