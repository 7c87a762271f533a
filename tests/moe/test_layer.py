"""The competing layer against the dense reference: output, input gradient, router and expert gradients."""

import pytest
import torch
from torch import Tensor

from megatron_compete.config import CompeteConfig
from tests.moe import layouts
from tests.moe.layouts import BATCH, EXPERTS, FFN, HIDDEN, SEQUENCE, WINNERS, Layout
from tests.moe.reference import Weights, competing_step
from tests.ranks import run_rank, run_ranks

STRONG = CompeteConfig(
    rate=1.0, max_active_layers=1, distill_coeff=0.7, diversity_coeff=0.5, response_balance_coeff=0.3,
    score_chunk_tokens=5,
)  # fmt: skip
"""Loss weights large enough that an error in any loss shows in the gradients; a chunk that divides nothing."""

LAYOUTS = [
    Layout(),
    Layout(dispatcher="allgather"),
    Layout(world=2, ep=2),
    Layout(world=2, ep=2, dispatcher="allgather"),
    Layout(world=2),
    Layout(world=2, tp=2, etp=2),
    Layout(world=2, tp=2, ep=2),
]


def microbatches(layout: Layout) -> tuple[Tensor, Tensor]:
    """Tokens and output cotangents [microbatches, S, B, H], the same on every rank."""
    random = torch.Generator().manual_seed(7)
    shape = (2, layout.microbatches, SEQUENCE, BATCH, HIDDEN)
    tokens, cotangents = torch.randn(shape, generator=random)
    return tokens, cotangents


def mine(whole: Tensor, layout: Layout, rank: int) -> Tensor:
    """This rank's tokens: a microbatch, split along the sequence over its tensor parallel ranks."""
    return whole[rank // layout.tp].chunk(layout.tp)[rank % layout.tp].contiguous()


def step_on_rank(layout: Layout, config: CompeteConfig) -> dict:
    layouts.initialize(layout)
    rank = torch.distributed.get_rank()
    weights = Weights.random(EXPERTS, HIDDEN, FFN)
    layer = layouts.build_layer(layout, weights, config)
    tokens, cotangents = (mine(whole, layout, rank) for whole in microbatches(layout))
    tokens.requires_grad_()
    output, bias = layer(tokens)
    assert bias is None
    output.backward(cotangents)
    return {"output": output.detach(), "tokens": tokens.grad} | layouts.gradients(layer)


@pytest.mark.parametrize("response", ["softplus", "l2"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_competing_step_equals_dense_reference(layout: Layout, response: str) -> None:
    config = CompeteConfig(**{**STRONG.__dict__, "response": response})
    per_rank = run_ranks(layout.world, step_on_rank, layout, config)

    weights = Weights.random(EXPERTS, HIDDEN, FFN).double()
    tokens, cotangents = (whole.double() for whole in microbatches(layout))
    tokens.requires_grad_()
    outputs = []
    total = torch.zeros((), dtype=torch.float64)
    for microbatch, cotangent in zip(tokens, cotangents):
        output, loss, _ = competing_step(microbatch.reshape(-1, HIDDEN), weights, WINNERS, config)
        outputs.append(output.view(SEQUENCE, BATCH, HIDDEN))
        total = total + (outputs[-1] * cotangent).sum() + loss
    total.backward()

    assert tokens.grad is not None
    for rank, result in enumerate(per_rank):
        close(result["output"], mine(torch.stack(outputs), layout, rank))
        close(result["tokens"], mine(tokens.grad, layout, rank))
    whole = layouts.assemble(per_rank, layout)
    for name in ("router", "fc1", "fc2"):
        close(getattr(whole, name), getattr(weights, name).grad)


def close(actual: Tensor, expected: Tensor) -> None:
    """Relative to the tensor's scale: largest difference below 1e-5 of the largest value."""
    expected = expected.detach().float()
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


def normal_step_equals_stock() -> None:
    from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec

    layout, weights = Layout(), Weights.random(EXPERTS, HIDDEN, FFN)
    layouts.initialize(layout)
    competing = layouts.build_layer(layout, weights, CompeteConfig(rate=0.0), moe_aux_loss_coeff=0.1, moe_router_load_balancing_type="aux_loss")  # fmt: skip
    stock = get_moe_module_spec(use_te=False, num_experts=EXPERTS)(config=competing.config)
    stock.set_layer_number(1)
    layouts.load(stock.train(), weights)
    results = []
    for layer in (competing, stock):
        tokens = torch.randn(SEQUENCE, BATCH, HIDDEN, generator=torch.Generator().manual_seed(1), requires_grad=True)
        output, _ = layer(tokens)
        output.square().sum().backward()
        grads = layouts.gradients(layer)
        results.append([output.detach(), tokens.grad, grads["router"], *grads["fc1"], *grads["fc2"]])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_rate_zero_is_megatrons_layer_bit_for_bit() -> None:
    run_rank(normal_step_equals_stock)


def recompute_keeps_the_winners() -> None:
    from megatron_compete.moe import layer as layer_module

    layout, weights = Layout(), Weights.random(EXPERTS, HIDDEN, FFN)
    layouts.initialize(layout)
    passes = []
    score = layer_module.score_tokens
    layer_module.score_tokens = lambda *a: passes.append(1) or score(*a)
    grads = []
    for overrides in ({}, {"recompute_granularity": "selective", "recompute_modules": ["moe"]}):
        layer = layouts.build_layer(layout, weights, STRONG, **overrides)
        both = [torch.randn(SEQUENCE, BATCH, HIDDEN, generator=torch.Generator().manual_seed(s)) for s in (1, 2)]
        outputs = [layer(tokens.requires_grad_())[0] for tokens in both]
        passes_before_backward = len(passes)
        for output in outputs:
            output.square().sum().backward()
        assert len(passes) == passes_before_backward
        result = layouts.gradients(layer)
        grads.append([*[tokens.grad for tokens in both], result["router"], *result["fc1"], *result["fc2"]])
    assert len(passes) == 4
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=0, atol=0)


def test_recompute_uses_the_first_pass_winners() -> None:
    run_rank(recompute_keeps_the_winners)


def evaluation_does_not_compete() -> None:
    layout, weights = Layout(), Weights.random(EXPERTS, HIDDEN, FFN)
    layouts.initialize(layout)
    tokens = torch.randn(SEQUENCE, BATCH, HIDDEN)
    with torch.no_grad():
        competing = layouts.build_layer(layout, weights, STRONG).eval()(tokens)[0]
        normal = layouts.build_layer(layout, weights, CompeteConfig(rate=0.0)).eval()(tokens)[0]
    assert torch.equal(competing, normal)


def test_evaluation_routes_with_the_router() -> None:
    run_rank(evaluation_does_not_compete)
