"""Expert-Threshold's weights and thresholds against loops, and the running mean against its definition."""

import math

import pytest
import torch

from megatron_compete.routing.baselines.running import running_mean
from megatron_compete.routing.baselines.threshold import expert_thresholds, expert_weights

T, E, K = 12, 4, 1
LOGITS = torch.randn(T, E, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_weights_by_the_formula() -> None:
    for t in range(T):
        for e in range(E):
            expected = 1 / (1 + math.exp(-LOGITS[t, e].item()))
            assert expert_weights(LOGITS)[t, e].item() == pytest.approx(expected)


@pytest.mark.parametrize("tokens, topk, taken", [(12, 1, 3), (12, 2, 6), (11, 1, 3), (2, 1, 1), (1, 1, 1), (12, 4, 12)])
def test_every_expert_takes_its_share_of_the_tokens(tokens: int, topk: int, taken: int) -> None:
    """11 tokens and a quarter of them: 2.75, that is 3; no expert goes without a token."""
    logits = LOGITS[:tokens]
    thresholds = expert_thresholds(logits, topk)
    for e in range(E):
        assert thresholds[e].item() == sorted(logits[:, e].tolist(), reverse=True)[taken - 1]
    assert (logits >= thresholds).sum(dim=0).tolist() == [taken] * E


def test_the_running_mean_weighs_by_age() -> None:
    decay, values = 0.9, [3.0, -1.0, 2.0, 5.0]
    mean = torch.zeros(1, dtype=torch.float64)
    for count, value in enumerate(values, start=1):
        mean = running_mean(mean, torch.full_like(mean, value), torch.full_like(mean, count), decay)
        weights = [decay ** (count - 1 - index) for index in range(count)]
        expected = sum(w * v for w, v in zip(weights, values)) / sum(weights)
        assert mean.item() == pytest.approx(expected)


def test_an_old_running_mean_moves_by_one_minus_decay() -> None:
    mean = running_mean(torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([1e6]), 0.99)
    assert mean.item() == pytest.approx(1.01)
