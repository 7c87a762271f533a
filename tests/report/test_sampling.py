"""Sampling keeps what one looks for in a curve."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_compete.report.sampling import block_means, first_of_runs, sample_extremes, windows

VALUES = st.lists(st.one_of(st.floats(-1e6, 1e6), st.sampled_from([np.nan, np.inf, -np.inf])), min_size=1, max_size=300)


@given(VALUES, st.integers(4, 60))
def test_extremes_ends_and_gaps_of_a_series_stay(values: list[float], limit: int) -> None:
    x, y = np.arange(len(values), dtype=float), np.array(values)
    kept_x, kept_y = sample_extremes(x, y, limit)
    assert len(kept_x) == len(kept_y) <= max(limit, 3 * (limit // 2) + 2)
    assert kept_x[0] == 0 and kept_x[-1] == len(values) - 1 and (np.diff(kept_x) > 0).all()
    finite = np.isfinite(y)
    assert np.isnan(kept_y).any() == (~finite).any()
    if finite.any():
        assert np.nanmin(kept_y) == y[finite].min() and np.nanmax(kept_y) == y[finite].max()
    chosen = kept_x.astype(int)
    assert np.array_equal(kept_y, np.where(finite, y, np.nan)[chosen], equal_nan=True)


def test_a_million_points_keep_a_spike_of_one_step() -> None:
    y = np.zeros(1_000_000)
    y[700_001] = 40.0
    x, sampled = sample_extremes(np.arange(1e6), y, 2000)
    assert len(x) <= 2002 and sampled[x == 700_001] == 40.0


def test_runs_begin_where_they_begin() -> None:
    assert first_of_runs(np.array([True, True, False, True, False])).tolist() == [0, 3]
    assert first_of_runs(np.zeros(3, bool)).tolist() == []


def test_windows_have_least_mean_and_greatest() -> None:
    x, least, mean, greatest = windows(np.arange(6.0), np.array([0, 1, 2, np.nan, np.nan, np.nan]), 2)
    assert x.tolist() == [1, 4]
    assert [least[0], mean[0], greatest[0]] == [0, 1, 2] and np.isnan([least[1], mean[1], greatest[1]]).all()


def test_blocks_are_means_of_what_is_there() -> None:
    cells = np.array([[1.0, 3.0, 5.0, np.nan], [1.0, np.inf, np.nan, np.nan]])
    assert np.array_equal(block_means(cells, 2, 2), [[2, 5], [1, np.nan]], equal_nan=True)
    assert np.array_equal(block_means(cells, 1, 4), [[1, 3, 5, np.nan]], equal_nan=True)
    large = np.random.default_rng(0).normal(size=(203, 700))
    assert block_means(large, 200, 512).shape == (200, 512)
