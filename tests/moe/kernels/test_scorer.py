"""The fused scorer in a layer: the modules' scores, a competing step of the dense reference, and waiting for weights."""

import dataclasses
from typing import Any

import pytest
import torch

from megatron_compete.config import CompeteConfig
from megatron_compete.routing.responses import softplus_response
from tests.moe import layouts
from tests.moe.layouts import EXPERTS, FFN, HIDDEN, Layout
from tests.moe.reference import Weights
from tests.ranks import run_rank, run_ranks

BF16 = {"bf16": True, "params_dtype": torch.bfloat16}


def both_scorers(overrides: dict[str, Any], chunk_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores by the kernels and by Megatron's modules, of ranks with different numbers of tokens."""
    from megatron_compete.moe.scoring import PlainScorer, choose_scorer, score_tokens
    from tests.moe.kernels.interpreter import repair

    repair()
    layout = Layout(world=2, ep=2)
    layouts.initialize(layout)
    config = CompeteConfig(score_kernel="fused")
    layer = layouts.build_layer(layout, Weights.random(EXPERTS, HIDDEN, FFN), config, **overrides)
    rank = torch.distributed.get_rank()
    random = torch.Generator().manual_seed(rank)
    tokens = torch.randn(14 if rank else 5, HIDDEN, generator=random).to(layer.config.params_dtype)
    fused = choose_scorer("fused", layer.config, layer.experts, layer.response, layer.groups, tokens)
    assert type(fused).__name__ == "FusedScorer"
    plain = PlainScorer(layer.experts, layer.response, layer.groups)
    by_kernels, by_modules = (score_tokens(tokens, scorer, layer.groups, chunk_tokens) for scorer in (fused, plain))
    return by_kernels, by_modules


@pytest.mark.parametrize("overrides", [{}, BF16, {"activation_func": torch.nn.functional.gelu}], ids=["fp32", "bf16", "geglu"])  # fmt: skip
def test_scores_are_those_of_the_modules(overrides: dict[str, Any]) -> None:
    tolerance = 4e-3 if overrides == BF16 else 2e-6
    for tokens, (by_kernels, by_modules) in zip((5, 14), run_ranks(2, both_scorers, overrides, 6), strict=True):
        assert by_kernels.shape == (tokens, EXPERTS)
        torch.testing.assert_close(by_kernels, by_modules, rtol=0, atol=tolerance)


def competing_steps(layout: Layout) -> None:
    from megatron_compete.moe.kernels import scorer as scorer_module
    from tests.moe.kernels.interpreter import repair

    repair()
    layouts.initialize(layout)
    config = CompeteConfig(rate=1.0, max_active_layers=1, score_chunk_tokens=5, score_kernel="fused")
    outputs, scores = [], []
    launched: list[int] = []
    fused = scorer_module.fused_responses
    scorer_module.fused_responses = lambda tokens, *a: launched.append(len(tokens)) or fused(tokens, *a)
    for kernel in ("plain", "fused"):
        settings = dataclasses.replace(config, score_kernel=kernel)
        layer = layouts.build_layer(layout, Weights.random(EXPERTS, HIDDEN, FFN), settings)
        tokens = torch.randn(8, 1, HIDDEN, generator=torch.Generator().manual_seed(torch.distributed.get_rank()))
        layer.route(tokens)
        scores.append(layer._outcome.responses_TE)
        outputs.append(layer(tokens)[0])
        assert bool(launched) == (kernel == "fused")
    torch.testing.assert_close(*scores, rtol=0, atol=2e-6)
    assert torch.equal(*outputs)  # the same winners, whose outputs are Megatron's


def test_a_competing_step_with_it_is_the_plain_one() -> None:
    run_ranks(2, competing_steps, Layout(world=2, ep=2))


def awaited() -> tuple[int, bool, bool]:
    """Weights that a module's forward pre-hook brings, as under --overlap-param-gather, and then at a new address."""
    from megatron_compete.moe.scoring import choose_scorer
    from tests.moe.kernels.interpreter import repair

    repair()
    layouts.initialize(Layout())
    layer = layouts.build_layer(Layout(), Weights.random(EXPERTS, HIDDEN, FFN), CompeteConfig())
    tokens = torch.randn(6, HIDDEN, generator=torch.Generator().manual_seed(0))
    scorer: Any = choose_scorer("fused", layer.config, layer.experts, softplus_response, layer.groups, tokens)
    expected = scorer.start()(tokens)
    table = scorer._weights.fc1_table
    linear = layer.experts.local_experts[2].linear_fc1
    whole = linear.weight.data.clone()
    linear.weight.data.zero_()
    calls = []
    hook = linear.register_forward_pre_hook(lambda module, *unused: calls.append(module.weight.data.copy_(whole)))
    same = torch.equal(scorer.start()(tokens), expected)
    assert scorer._weights.fc1_table is table  # addresses have not changed
    hook.remove()
    linear.weight.data = whole * 2
    return len(calls), same, torch.equal(scorer.start()(tokens)[:, 2], expected[:, 2])


def test_it_waits_for_weights_and_finds_them_where_they_are() -> None:
    calls, same, stale = run_rank(awaited)
    assert calls == 1 and same and not stale
