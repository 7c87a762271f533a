"""Responses against the formula, spelled out in fp64."""

import math

import pytest
import torch

from megatron_compete.routing.responses import RESPONSES, l2_response, scored_softplus, softplus_response


def test_softplus_is_the_mean_over_the_hidden_size() -> None:
    outputs = torch.tensor([[0.0, 1.0, -2.0]], dtype=torch.float64)
    expected = sum(math.log1p(math.exp(v)) for v in (0.0, 1.0, -2.0)) / 3
    torch.testing.assert_close(softplus_response(outputs), torch.tensor([expected], dtype=torch.float64))


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 1000.0])
@pytest.mark.parametrize("hidden", [64, 72])
def test_scored_softplus_is_the_formula_at_every_scale(scale: float, hidden: int) -> None:
    """Also where products of some tokens overflow, and where no tokens are left."""
    outputs = torch.randn(50, 3, hidden, generator=torch.Generator().manual_seed(0)) * scale
    outputs[7] = 200.0
    exact = torch.log1p(outputs.double().exp()).where(outputs < 200, outputs.double()).mean(-1)
    torch.testing.assert_close(scored_softplus(outputs), exact.float(), rtol=1e-6, atol=1e-6)
    assert scored_softplus(outputs[:0]).shape == (0, 3)


def test_l2_is_the_norm() -> None:
    torch.testing.assert_close(l2_response(torch.tensor([[3.0, 4.0]])), torch.tensor([5.0]))


@pytest.mark.parametrize("name", RESPONSES)
def test_reduces_in_fp32_with_gradient(name: str) -> None:
    outputs = torch.randn(5, 7, 4096, dtype=torch.bfloat16, requires_grad=True)
    responses = RESPONSES[name](outputs)
    assert responses.dtype == torch.float32 and responses.shape == (5, 7)
    torch.testing.assert_close(responses, RESPONSES[name](outputs.double()).float(), rtol=1e-5, atol=1e-5)
    responses.sum().backward()
    assert outputs.grad is not None and outputs.grad.abs().sum() > 0
