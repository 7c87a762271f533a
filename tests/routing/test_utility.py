"""Utilities and the router's dense gradient against autograd."""

from typing import Any

import pytest
import torch

from megatron_compete.routing.rule import RouterRule
from megatron_compete.routing.utility import dense_router_gradient, utility

TOKENS, EXPERTS, HIDDEN = 5, 4, 7


def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


def mixture(logits: torch.Tensor, settings: dict[str, Any]) -> torch.Tensor:
    """Weights of a router that chooses all experts, by the formulas."""
    function = settings.get("moe_router_score_function", "softmax")
    if function == "softmax":
        shares = logits.softmax(-1)
    else:
        shares = logits.sigmoid() if function == "sigmoid" else torch.log1p(logits.exp()).sqrt()
        if settings["moe_router_topk"] > 1:
            shares = shares / shares.sum(-1, keepdim=True)
    return shares * settings.get("moe_router_topk_scaling_factor", 1.0)


@pytest.mark.parametrize("factor", [{}, {"moe_router_topk_scaling_factor": 2.5}], ids=["", "scaled"])
@pytest.mark.parametrize("top_k", [1, 3])
@pytest.mark.parametrize("function", ["softmax", "sigmoid", "sqrtsoftplus"])
def test_the_dense_gradient_is_that_of_the_sum_of_all_experts(
    function: str, top_k: int, factor: dict[str, Any]
) -> None:
    settings: dict[str, Any] = dict(moe_router_topk=top_k, moe_router_score_function=function, **factor)
    if function == "softmax" and top_k == 1:
        settings["moe_router_pre_softmax"] = True
    logits, outputs = 3 * drawn(TOKENS, EXPERTS), drawn(TOKENS, EXPERTS, HIDDEN)
    logits.requires_grad_()
    target = drawn(TOKENS, HIDDEN)
    combined = torch.einsum("te,teh->th", mixture(logits, settings), outputs)
    loss = (combined - target).square().sum()
    (expected,) = torch.autograd.grad(loss, logits)
    output_gradients = 2 * (combined - target).detach()
    utilities = utility(outputs, output_gradients.unsqueeze(1).expand_as(outputs))
    found = dense_router_gradient(logits.detach(), utilities, RouterRule.of(settings))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()  # fp32


def test_a_score_that_underflows_has_no_gradient() -> None:
    rule = RouterRule.of(dict(moe_router_topk=1, moe_router_score_function="sqrtsoftplus"))
    found = dense_router_gradient(torch.tensor([[-200.0, -90.0, 1.0]]), torch.ones(1, 3), rule)
    assert found.isfinite().all() and found[0, 0] == 0


def test_a_negative_utility_lowers_the_loss() -> None:
    outputs, target, share = drawn(TOKENS, EXPERTS, HIDDEN), drawn(TOKENS, HIDDEN), 1e-6
    combined = outputs.mean(1)
    utilities = utility(outputs, 2 * (combined - target).unsqueeze(1).expand_as(outputs))
    before = (combined - target).square().sum(-1)
    for expert in range(EXPERTS):
        after = (combined + share * outputs[:, expert] - target).square().sum(-1)
        torch.testing.assert_close((after - before) / share, utilities[:, expert], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_utilities_are_summed_in_fp32(dtype: torch.dtype) -> None:
    outputs, gradients = drawn(3, 1000, dtype=dtype), drawn(3, 1000, dtype=dtype)
    expected = (outputs.double() * gradients.double()).sum(-1)
    found = utility(outputs, gradients)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


def test_no_tokens() -> None:
    assert utility(torch.zeros(0, HIDDEN), torch.zeros(0, HIDDEN)).shape == (0,)
    assert dense_router_gradient(torch.zeros(0, EXPERTS), torch.zeros(0, EXPERTS), RouterRule(2)).shape == (0, EXPERTS)
