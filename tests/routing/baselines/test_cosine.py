"""Cosine logits against the formulas written as loops in fp64."""

import math

import pytest
import torch
from torch import Tensor

from megatron_compete.routing.baselines.cosine import SMALLEST_NORM, cosine_logits, perturbed_cosine_logits

T, E, D = 6, 5, 3
TAU, P = 0.3, 0.1


def by_loops(projected: Tensor, experts: Tensor, perturbation: float) -> Tensor:
    """<Wx, e> / ((|Wx| + p) (|e| + p)) / tau, one number at a time."""
    logits = torch.empty(T, E, dtype=torch.float64)
    for t in range(T):
        for e in range(E):
            dot = sum(float(projected[t, d]) * float(experts[e, d]) for d in range(D))
            token = math.sqrt(sum(float(projected[t, d]) ** 2 for d in range(D)))
            expert = math.sqrt(sum(float(experts[e, d]) ** 2 for d in range(D)))
            logits[t, e] = dot / ((token + perturbation) * (expert + perturbation)) / TAU
    return logits


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(3)
    return tuple(torch.randn(n, D, dtype=torch.float64, generator=random, requires_grad=True) for n in (T, E))


def test_cosine_is_the_formula(pair: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(cosine_logits(*pair, TAU), by_loops(*pair, 0.0))


def test_perturbed_cosine_is_the_formula(pair: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(perturbed_cosine_logits(*pair, TAU, P), by_loops(*pair, P))


def test_a_cosine_forgets_both_norms_and_a_perturbed_one_does_not(pair: tuple[Tensor, Tensor]) -> None:
    tokens, experts = pair
    torch.testing.assert_close(cosine_logits(3 * tokens, 0.2 * experts, TAU), cosine_logits(tokens, experts, TAU))
    short, long = (perturbed_cosine_logits(scale * tokens, experts, TAU, P).abs() for scale in (0.1, 1.0))
    assert (short < long).all()


def test_gradients_are_those_of_the_values(pair: tuple[Tensor, Tensor]) -> None:
    tau = torch.tensor(TAU, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(cosine_logits, (*pair, tau))
    assert torch.autograd.gradcheck(lambda t, e, tau: perturbed_cosine_logits(t, e, tau, P), (*pair, tau))


def test_a_token_of_zeros_has_finite_logits_and_gradients() -> None:
    tokens, experts = torch.zeros(1, D, requires_grad=True), torch.randn(E, D)
    logits = cosine_logits(tokens, experts, TAU)
    (gradient,) = torch.autograd.grad(logits.sum(), tokens)
    assert (logits == 0).all()
    assert gradient.norm() <= E / (SMALLEST_NORM * TAU)
    logits = perturbed_cosine_logits(tokens, experts, TAU, P)
    assert (logits == 0).all()
    assert torch.autograd.grad(logits.sum(), tokens)[0].isfinite().all()
