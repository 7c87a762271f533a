"""Expected competitions against a plain sum of the rate, and what a curve refuses."""

import math

import numpy as np
import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.schedule.rate import RateCurve


def test_a_constant_rate_is_counted_exactly() -> None:
    assert RateCurve(0.25).competitions(np.array([0, 4, 10])).tolist() == [0.0, 1.0, 2.5]


def test_a_falling_rate_is_the_integral() -> None:
    """Linear from 0.5 to 0.1 over 100 steps: mean 0.3; a half cosine has the same mean; then 0.1 a step."""
    for decay in ("linear", "cosine"):
        curve = RateCurve(0.5, decay, decay_steps=100, floor=0.1)
        assert curve.competitions(np.array([0, 100, 150])) == pytest.approx([0.0, 30.0, 35.0])
    linear = RateCurve(0.5, "linear", 100, 0.1).competitions(np.array([50]))
    assert linear == pytest.approx([50 * (0.5 + 0.3) / 2])
    cosine = RateCurve(0.5, "cosine", 100, 0.1).competitions(np.array([50]))
    midpoints = (np.arange(50_000) + 0.5) / 1000
    assert cosine == pytest.approx([np.mean(0.1 + 0.4 * (1 + np.cos(math.pi * midpoints / 100)) / 2) * 50])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"rate": 1.1}, "--compete-rate 1.1 is out of range"),
        ({"rate": 0.1, "floor": 0.05}, "--compete-rate-floor 0.05 changes nothing"),
        ({"rate": 0.1, "decay_steps": 5}, "--compete-rate-decay-steps 5 changes nothing"),
        ({"rate": 0.1, "decay": "linear"}, "--compete-rate-decay linear needs --compete-rate-decay-steps"),
        ({"rate": 0.1, "decay": "cosine", "decay_steps": 5, "floor": 0.2}, "--compete-rate-floor 0.2 is out of range"),
    ],
)
def test_what_has_no_meaning_or_no_effect_is_refused(values: dict, says: str) -> None:
    with pytest.raises(CompeteError, match=says):
        RateCurve(**values)
