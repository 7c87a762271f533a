"""Intervals against a table, hand-made cases, and how often they hold the truth."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_compete.audit.metrics.intervals import mean_interval
from megatron_compete.audit.results import Interval
from megatron_compete.common.errors import CompeteError


def test_sequences_of_one_length_have_the_interval_of_students_table() -> None:
    """Means .1, .2, .3 of ten tokens each: deviation .1; t of 2 degrees of freedom is 4.302653 at 95%."""
    found = mean_interval(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10, 10, 10]))
    reach = 4.302653 * 0.1 / 3**0.5
    assert found.mean == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.2 - reach, 0.2 + reach), rel=1e-6)


def test_long_sequences_weigh_more() -> None:
    """Two sequences: r = 5 / 4, residuals 1 - 5/4 and 4 - 3 * 5/4 = 1/4; t of one degree of freedom is 12.7062."""
    found = mean_interval(torch.tensor([1.0, 4.0, 0.0]), torch.tensor([1.0, 3.0, 0.0]))
    reach = 12.7062 * (2 * (1 / 16 + 1 / 16)) ** 0.5 / 4
    assert found.mean == 1.25
    assert found.high - found.mean == pytest.approx(reach, rel=1e-5)


def test_one_sequence_has_no_interval_and_no_token_no_mean() -> None:
    assert mean_interval(torch.tensor([3.0]), torch.tensor([2])) == Interval(1.5, 1.5, 1.5)
    with pytest.raises(CompeteError, match="no token to predict"):
        mean_interval(torch.zeros(2), torch.zeros(2))


def test_no_difference_has_no_width() -> None:
    assert mean_interval(torch.zeros(5), torch.full((5,), 7.0)) == Interval(0.0, 0.0, 0.0)


@pytest.mark.parametrize("sequences", [8, 40])
def test_ninety_five_of_a_hundred_hold_the_truth(sequences: int) -> None:
    """Tokens of a sequence are alike and lengths differ: an interval over tokens would hold it far less often."""
    random = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        tokens = random.integers(50, 150, sequences)
        levels = random.normal(3.0, 0.5, sequences)
        sums = levels * tokens + random.normal(0.0, 1.0, sequences) * np.sqrt(tokens)
        found = mean_interval(torch.from_numpy(sums), torch.from_numpy(tokens))
        held += found.low <= 3.0 <= found.high
    assert 0.93 <= held / 2000 <= 0.965


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.integers(1, 1000)), min_size=2, max_size=20), st.floats(-10, 10))
def test_what_is_added_to_each_token_moves_the_interval(drawn: list[tuple[float, int]], shift: float) -> None:
    sums_S, tokens_S = (torch.tensor(values, dtype=torch.float64) for values in zip(*drawn))
    found, moved = mean_interval(sums_S, tokens_S), mean_interval(sums_S + shift * tokens_S, tokens_S)
    assert found.low <= found.mean <= found.high
    assert (moved.mean, moved.low, moved.high) == pytest.approx(
        (found.mean + shift, found.low + shift, found.high + shift), rel=1e-6, abs=1e-6
    )
