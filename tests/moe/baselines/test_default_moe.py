"""`--router-default-part gradient`: the output without default vectors, and the router's gradient with them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_compete.common.errors import CompeteError
from megatron_compete.moe.baselines.config import BaselineConfig
from tests.moe import layouts
from tests.moe.baselines.layers import build_baseline
from tests.moe.baselines.test_frozen import stock_layer
from tests.moe.baselines.variable_reference import K
from tests.moe.layouts import BATCH, EXPERTS, FFN, HIDDEN, SEQUENCE, Layout
from tests.moe.reference import Weights, expert_outputs
from tests.moe.steps import Batch, Result, assert_equal_to_reference, random_batch, reference_step
from tests.moe.steps import train_step as train_layer
from tests.ranks import run_rank, run_ranks

SCALE = 1.5
PART = BaselineConfig(default_part="gradient")
WEIGHTS = Weights.random(EXPERTS, HIDDEN, FFN)
DEFAULTS = torch.randn(EXPERTS, HIDDEN, generator=torch.Generator().manual_seed(8))
TOKENS = torch.randn(SEQUENCE, BATCH, HIDDEN, generator=torch.Generator().manual_seed(3))


def built(layout: Layout, settings: BaselineConfig, defaults: Tensor | None, **overrides: Any) -> Any:
    layer = build_baseline(layout, "default-moe", settings, WEIGHTS, moe_router_topk_scaling_factor=SCALE, **overrides)
    if defaults is not None:
        layer.router.default_outputs.copy_(defaults)
    return layer


def outputs() -> dict[str, Tensor]:
    layouts.initialize(Layout())
    without = built(Layout(), BaselineConfig(), None)
    part = built(Layout(), PART, DEFAULTS)
    recomputed = built(Layout(), PART, DEFAULTS, recompute_granularity="selective", recompute_modules=["moe"])
    topk = stock_layer(moe_router_pre_softmax=True, moe_router_topk_scaling_factor=SCALE)
    layers = {"without": without, "part": part, "recomputed": recomputed, "topk": topk}
    found = {name: layer(TOKENS.clone().requires_grad_())[0].detach() for name, layer in layers.items()}
    return found | {"evaluated": part.eval()(TOKENS)[0].detach()}


def test_the_output_is_that_without_default_vectors_to_the_bit() -> None:
    found = run_rank(outputs)
    for name in ("part", "recomputed", "evaluated"):
        assert torch.equal(found[name], found["without"]), name
    torch.testing.assert_close(found["part"], found["topk"], rtol=1e-6, atol=1e-6)  # softmax before the choice


def train_on_rank(layout: Layout, batch: Batch, overrides: dict[str, Any]) -> Result:
    layouts.initialize(layout)
    return train_layer(built(layout, PART, DEFAULTS, **overrides), layout, batch)


def reference(tokens: Tensor, weights: Weights, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The chosen experts' output; what the others would add has a gradient alone, in the probabilities."""
    p = (tokens @ weights.router.T).softmax(-1)
    chosen = p >= p.sort(-1, descending=True).values[:, K - 1 : K]
    y = torch.where(chosen.unsqueeze(-1), expert_outputs(tokens, weights), DEFAULTS.double())
    whole = SCALE * (p.unsqueeze(-1) * y).sum(1)
    others = SCALE * ((p * ~chosen).unsqueeze(-1) * y).sum(1)
    return whole - others.detach(), whole.new_zeros(()), chosen


@pytest.mark.parametrize("layout", [Layout(), Layout(world=2, ep=2), Layout(world=4, tp=2, ep=2, etp=2)], ids=str)
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_default_moes_for_the_same_gradient_of_the_output(layout: Layout, recompute: bool) -> None:
    batch = random_batch(layout, SEQUENCE, BATCH)
    overrides = {"recompute_granularity": "selective", "recompute_modules": ["moe"]} if recompute else {}
    per_rank = run_ranks(layout.world, train_on_rank, layout, batch, overrides)
    expected = reference_step(batch, WEIGHTS, layout, None, reference)  # type: ignore[arg-type]
    assert_equal_to_reference(per_rank, expected, layout)


def test_another_part_is_refused() -> None:
    with pytest.raises(CompeteError, match="--router-default-part both is out of range: choose from output, gradient"):
        BaselineConfig(default_part="both")  # type: ignore[arg-type]
