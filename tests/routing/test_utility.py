"""Utilities and the router's dense gradient against autograd."""

import pytest
import torch

from megatron_compete.routing.utility import dense_router_gradient, utility

TOKENS, EXPERTS, HIDDEN = 5, 4, 7


def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


def test_the_dense_gradient_is_that_of_the_sum_of_all_experts() -> None:
    logits, outputs = drawn(TOKENS, EXPERTS).requires_grad_(), drawn(TOKENS, EXPERTS, HIDDEN)
    target = drawn(TOKENS, HIDDEN)
    combined = torch.einsum("te,teh->th", logits.softmax(-1), outputs)
    loss = (combined - target).square().sum()
    (expected,) = torch.autograd.grad(loss, logits)
    output_gradients = 2 * (combined - target).detach()
    utilities = utility(outputs, output_gradients.unsqueeze(1).expand_as(outputs))
    torch.testing.assert_close(dense_router_gradient(logits.detach().softmax(-1), utilities), expected)


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
    assert dense_router_gradient(torch.zeros(0, EXPERTS), torch.zeros(0, EXPERTS)).shape == (0, EXPERTS)
