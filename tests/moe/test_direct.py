"""Scoring by the weights alone: Megatron's modules' scores, bit for bit, wherever it is what `auto` takes."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from megatron.core.activations import squared_relu
from megatron.core.fusions.fused_bias_geglu import quick_gelu

from megatron_compete.config import CompeteConfig
from megatron_compete.moe.direct import DirectScorer
from megatron_compete.moe.scoring import PlainScorer, choose_scorer, score_tokens
from megatron_compete.routing.responses import l2_response, softplus_response
from megatron_compete.routing.utility import utility
from tests.moe import layouts
from tests.moe.layouts import EXPERTS, FFN, HIDDEN, Layout
from tests.moe.reference import Weights
from tests.ranks import run_rank, run_ranks

FORMS: dict[str, dict[str, Any]] = {
    "swiglu": {},
    "bf16": {"bf16": True, "params_dtype": torch.bfloat16},
    "fused swiglu": {"bias_activation_fusion": True},
    "fused quick geglu": {"bias_activation_fusion": True, "activation_func": quick_gelu},
    "geglu, biases": {"activation_func": F.gelu, "add_bias_linear": True},
    "any function": {"activation_func": torch.tanh},
    "two matrices": {"gated_linear_unit": False, "activation_func": squared_relu},
}


def build(layout: Layout, **overrides: Any) -> Any:
    weights = Weights.random(EXPERTS, HIDDEN, FFN)
    if not overrides.get("gated_linear_unit", True):
        weights.fc1 = weights.fc1[:, :FFN]
    layer = layouts.build_layer(layout, weights, CompeteConfig(), **overrides)
    for name, parameter in layer.experts.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return layer


def differing(layout: Layout, forms: dict[str, dict[str, Any]]) -> list[str]:
    """Forms whose scores by weights are not those of the modules, of ranks with different numbers of tokens."""
    layouts.initialize(layout)
    random = torch.Generator().manual_seed(torch.distributed.get_rank())
    tokens, vectors = torch.randn(2, (11, 2)[torch.distributed.get_rank() % 2], HIDDEN, generator=random)
    found = []
    for name, overrides in forms.items():
        layer = build(layout, **overrides)
        given = [values.to(layer.config.params_dtype) for values in (tokens, vectors)]
        for reduction in (softplus_response, l2_response, utility):
            scorer = choose_scorer("auto", layer.config, layer.experts, reduction, layer.groups, given[0])
            assert type(scorer) is DirectScorer
            plain = choose_scorer("plain", layer.config, layer.experts, reduction, layer.groups, given[0])
            assert type(plain) is PlainScorer
            arguments = given[1:] if reduction is utility else []
            ours, modules = (score_tokens(given[0], s, layer.groups, 5, *arguments) for s in (scorer, plain))
            assert ours.shape == (len(tokens), EXPERTS) and ours.std() > 0
            if ours.dtype != torch.float32 or not torch.equal(ours, modules):
                found.append(f"{name}, {reduction.__name__}")
    return found


def test_scores_are_those_of_the_modules_bit_for_bit() -> None:
    assert run_rank(differing, Layout(), FORMS) == []


@pytest.mark.parametrize("layout", [Layout(world=2, ep=2), Layout(world=2, etp=2), Layout(world=4, ep=2, etp=2)], ids=str)  # fmt: skip
def test_and_over_ranks_that_share_experts(layout: Layout) -> None:
    for found in run_ranks(layout.world, differing, layout, {"swiglu": {}}):
        assert found == []


def not_covered() -> dict[str, str]:
    """The scorers of layers whose experts are something else, and of `plain`."""
    layouts.initialize(Layout())

    def choose(choice: str = "auto", change: Any = None, **settings: Any) -> str:
        layer = build(Layout())
        if change:
            change(layer.experts.local_experts[1])
        config: Any = SimpleNamespace(**vars(layer.config) | settings)
        tokens = torch.zeros(1, HIDDEN)
        return type(choose_scorer(choice, config, layer.experts, utility, layer.groups, tokens)).__name__

    class Adapted(torch.nn.Module):
        def __init__(self, linear: torch.nn.Module) -> None:
            super().__init__()
            self.to_wrap, self.weight, self.bias = linear, linear.weight, None

    def adapted(expert: Any) -> None:
        expert.linear_fc2 = Adapted(expert.linear_fc2)

    def in_bf16(expert: Any) -> None:
        expert.linear_fc1.weight.data = expert.linear_fc1.weight.data.bfloat16()

    return {
        "nothing": choose(), "plain": choose("plain"), "adapter": choose(change=adapted), "bf16": choose(change=in_bf16),
        "clamped": choose(activation_func_clamp_value=7.0), "offset": choose(glu_linear_offset=1.0),
        "interleaved": choose(moe_mlp_glu_interleave_size=32), "te": choose(use_te_activation_func=True),
    }  # fmt: skip


def test_whatever_is_not_known_runs_by_the_modules() -> None:
    scorers = run_rank(not_covered)
    assert scorers.pop("nothing") == "DirectScorer"
    assert set(scorers.values()) == {"PlainScorer"} and len(scorers) == 7


def awaited() -> bool:
    """Weights that a module's forward pre-hook brings, as under --overlap-param-gather."""
    layouts.initialize(Layout())
    layer = build(Layout())
    tokens = torch.randn(6, HIDDEN, generator=torch.Generator().manual_seed(0))
    linear = layer.experts.local_experts[2].linear_fc1
    whole = linear.weight.data.clone()
    with torch.no_grad():
        scorer = DirectScorer(layer.config, layer.experts, softplus_response, layer.groups)
        expected = scorer.start()(tokens)
        linear.weight.data.zero_()
        linear.register_forward_pre_hook(lambda module, *unused: module.weight.data.copy_(whole))
        return torch.equal(scorer.start()(tokens), expected)


def test_it_waits_for_weights() -> None:
    assert run_rank(awaited)
