"""Statistics against values worked out by hand or taken from tables."""

import math

import pytest

from megatron_compete.study.statistics import at_seconds, paired_difference, pooled_clock, spread


def test_mean_and_sample_deviation() -> None:
    found = spread([1.0, 2.0, 4.0, 5.0])
    assert (found.count, found.mean) == (4, 3.0)
    assert found.deviation == pytest.approx((10 / 3) ** 0.5)
    assert spread([2.5]).deviation is None


def test_paired_differences_have_the_interval_of_students_table() -> None:
    """Differences .1, .2, .3: mean .2, deviation .1; t of 2 degrees of freedom is 4.3027 at 95 %."""
    found = paired_difference({1: 1.1, 2: 2.2, 3: 3.3, 9: 0.0}, {1: 1.0, 2: 2.0, 3: 3.0, 8: 5.0})
    assert found is not None and found.count == 3
    assert found.mean == pytest.approx(0.2) and found.deviation == pytest.approx(0.1)
    assert found.half_width == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-6)
    # Two degrees of freedom have a closed form: p = 1 - t / sqrt(t^2 + 2) with t = 2 sqrt(3).
    assert found.p_value == pytest.approx(1 - 12**0.5 / 14**0.5, rel=1e-6)


def test_two_pairs() -> None:
    """One degree of freedom is Cauchy's distribution: t = 12.7062."""
    found = paired_difference({1: 1.0, 2: 3.0}, {1: 0.0, 2: 0.0})
    assert found is not None and found.half_width == pytest.approx(12.7062 * 2**0.5 / 2**0.5, rel=1e-5)


def test_pairing_takes_out_what_a_seed_does_to_both() -> None:
    apart = {1: 1.0, 2: 5.0, 3: 9.0}
    found = paired_difference({seed: value - 0.5 for seed, value in apart.items()}, apart)
    assert found is not None and (found.mean, found.half_width, found.p_value) == (-0.5, 0.0, 0.0)


def test_one_pair_has_no_interval_and_none_no_difference() -> None:
    one = paired_difference({1: 2.0}, {1: 1.0})
    assert one is not None and (one.mean, one.deviation, one.half_width, one.p_value) == (1.0, None, None, None)
    assert paired_difference({1: 2.0}, {2: 1.0}) is None


def test_a_variants_clock_is_the_median_over_its_seeds() -> None:
    assert pooled_clock([{0: 0.0, 10: 5.0}, {0: 0.0, 10: 50.0}, {0: 0.0, 10: 6.0, 20: 12.0}]) == {0: 0.0, 10: 6.0}


def test_values_at_seconds_lie_on_the_line_between_probes() -> None:
    clock = {0: 0.0, 10: 4.0, 20: 12.0}
    series = {0: 3.0, 10: 2.0, 20: 1.0}
    assert at_seconds(series, clock, 4.0) == 2.0
    assert at_seconds(series, clock, 6.0) == pytest.approx(1.75)
    with pytest.raises(ValueError, match="not within"):
        at_seconds(series, clock, 12.1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_run_that_diverged_is_no_result(value: float) -> None:
    """A p of 0 or an interval would say that the difference is sure."""
    found = paired_difference({1: 2.0, 2: value, 3: 2.1}, {1: 2.1, 2: 2.2, 3: 2.3})
    assert found is not None and found.count == 3
    assert all(map(math.isnan, (found.mean, found.deviation, found.half_width, found.p_value)))
    assert math.isnan(spread([1.0, value]).mean) and math.isnan(spread([value]).mean)
