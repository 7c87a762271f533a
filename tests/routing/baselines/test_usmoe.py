"""USMoE's score and threshold against loops, and that a token's experts are its own affair."""

import math

import pytest
import torch

from megatron_compete.routing.baselines.usmoe import budget_threshold, unified_scores

T, E, K = 7, 5, 2
LOGITS = torch.randn(T, E, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_scores_by_the_formula(alpha: float) -> None:
    scores = unified_scores(LOGITS, alpha)
    for t in range(T):
        normaliser = sum(math.exp(z) for z in LOGITS[t].tolist())
        for e, z in enumerate(LOGITS[t].tolist()):
            softmax, sigmoid = math.exp(z) / normaliser, 1 / (1 + math.exp(-z))
            assert scores[t, e].item() == pytest.approx((1 - alpha) * softmax + alpha * 2 * sigmoid / E)


def test_the_threshold_takes_exactly_the_budget() -> None:
    scores = unified_scores(LOGITS, 0.5)
    threshold = budget_threshold(scores, K)
    assert threshold.shape == (1,)
    assert threshold.item() == sorted(scores.flatten().tolist(), reverse=True)[T * K - 1]
    assert (scores >= threshold).sum() == T * K


def test_all_experts_are_a_budget_too() -> None:
    scores = unified_scores(LOGITS, 0.5)
    assert (scores >= budget_threshold(scores, E)).all()


def test_the_best_pairs_of_a_batch_see_the_future_and_a_threshold_does_not() -> None:
    """Why the paper's choice is not made: the first token's experts change with the last token's logits."""
    later = LOGITS.clone()
    later[-1] += 9.0 * torch.eye(E)[0] - 4.0
    before, after = unified_scores(LOGITS, 0.5), unified_scores(later, 0.5)
    of_batch = [scores >= budget_threshold(scores, K) for scores in (before, after)]
    assert not torch.equal(of_batch[0][:-1], of_batch[1][:-1])
    known = budget_threshold(before, K)
    assert torch.equal((before >= known)[:-1], (after >= known)[:-1])
