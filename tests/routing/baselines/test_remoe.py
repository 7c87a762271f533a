"""ReMoE's formulas against loops over tokens and experts."""

import pytest
import torch

from megatron_compete.routing.baselines.remoe import (
    COEFFICIENT_RANGE,
    l1_regularization,
    next_coefficient,
    relu_weights,
)

T, E, K, L = 6, 4, 2, 3
LOGITS = torch.randn(T, E, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_weights_and_regularization_by_the_papers_formula() -> None:
    logits = LOGITS.clone().requires_grad_()
    expected = torch.zeros((), dtype=torch.float64)
    for e in range(E):
        tokens = sum(1 for t in range(T) if logits[t, e] > 0)
        for t in range(T):
            weight = logits[t, e] if logits[t, e] > 0 else 0.0
            assert relu_weights(logits)[t, e] == weight
            expected = expected + E / (K * T) * tokens * weight / (L * T)
    weights = relu_weights(logits)
    actual = l1_regularization(weights, (weights > 0).sum(dim=0), T, K, L)
    assert actual.item() == pytest.approx(expected.item())
    (one,) = torch.autograd.grad(actual, logits)
    (other,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(one, other)


def test_parts_of_a_microbatch_add_up() -> None:
    weights = relu_weights(LOGITS)
    counts = (weights > 0).sum(dim=0)
    whole = l1_regularization(weights, counts, T, K, L)
    parts = [l1_regularization(part, counts, torch.tensor(T), K, L) for part in (weights[:1], weights[1:], weights[:0])]
    torch.testing.assert_close(sum(parts), whole)


def test_no_tokens_have_no_penalty() -> None:
    assert l1_regularization(torch.zeros(0, E), torch.zeros(E), 0, K, L) == 0


@pytest.mark.parametrize("chosen_share, factor", [(0.6, 1.2), (0.5, 1.0), (0.4, 1 / 1.2)])
def test_the_coefficient_rises_where_tokens_take_too_many_experts(chosen_share: float, factor: float) -> None:
    coefficient = torch.tensor([1e-8])
    after = next_coefficient(coefficient, torch.tensor([chosen_share]), K, E, 1.2)
    torch.testing.assert_close(after, coefficient * factor)


@pytest.mark.parametrize("chosen_share, end", zip((0.0, 1.0), COEFFICIENT_RANGE))
def test_a_coefficient_comes_back_from_either_end(chosen_share: float, end: float) -> None:
    coefficient = torch.tensor([1e-8])
    for _ in range(1000):
        coefficient = next_coefficient(coefficient, torch.tensor([chosen_share]), K, E, 1.2)
    assert coefficient.item() == pytest.approx(end)
    back = next_coefficient(coefficient, 1 - torch.tensor([chosen_share]), K, E, 1.2)
    assert abs(back.log() - coefficient.log()).item() == pytest.approx(0.1823, abs=1e-3)


def test_the_penalty_drives_a_routers_sparsity_to_its_target() -> None:
    """The loop of training on a task of its own: from half of all pairs to K/E of them, and it stays there."""
    torch.manual_seed(2)
    tokens, experts, budget = 128, 8, 1
    inputs, goal = torch.randn(tokens, 16) + 0.5, torch.randn(tokens, experts)
    weight = (0.1 * torch.randn(16, experts)).requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=1e-2)
    coefficient, shares = torch.tensor([1e-4]), []
    for _ in range(200):
        weights = relu_weights(inputs @ weight)
        chosen = weights > 0
        penalty = l1_regularization(weights, chosen.sum(dim=0), tokens, budget, 1)
        optimizer.zero_grad()
        ((weights - goal).square().mean() + coefficient * penalty).sum().backward()
        optimizer.step()
        shares.append(chosen.float().mean())
        coefficient = next_coefficient(coefficient, shares[-1], budget, experts, 1.2)
    assert shares[0] > 0.4
    assert torch.stack(shares[100:]).mean().item() == pytest.approx(budget / experts, rel=0.1)
