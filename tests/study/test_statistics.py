"""Statistics against values worked out by hand or taken from tables."""

import math

import pytest

from megatron_compete.study.statistics import (
    Difference,
    holm,
    judge,
    paired_difference,
    pairs_needed,
    power,
    simultaneous,
    spread,
)


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


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_run_that_diverged_is_no_result(value: float) -> None:
    """A p of 0 or an interval would say that the difference is sure."""
    found = paired_difference({1: 2.0, 2: value, 3: 2.1}, {1: 2.1, 2: 2.2, 3: 2.3})
    assert found is not None and found.count == 3
    assert all(map(math.isnan, (found.mean, found.deviation, found.half_width, found.p_value)))
    assert math.isnan(spread([1.0, value]).mean) and math.isnan(spread([value]).mean)


def test_an_interval_at_another_level() -> None:
    """t of 4 degrees of freedom is 2.776445 at 95 % and 4.604095 at 99 %."""
    found = Difference(5, 0.3, 0.1, None, None)
    assert found.interval() == pytest.approx((0.3 - 2.776445 * 0.1 / 5**0.5, 0.3 + 2.776445 * 0.1 / 5**0.5), rel=1e-6)
    assert found.interval(0.99) == pytest.approx((0.3 - 4.604095 * 0.1 / 5**0.5, 0.3 + 4.604095 * 0.1 / 5**0.5), rel=1e-6)  # fmt: skip
    assert Difference(1, 0.3, None, None, None).interval() is None
    assert simultaneous(1) == pytest.approx(0.95) and simultaneous(5) == pytest.approx(0.99)


def test_holm_by_hand() -> None:
    """Sorted .01, .02, .03, .04 times 4, 3, 2, 1 are .04, .06, .06, .04, which may not fall again: .06."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.03]) == [0.03] and holm([]) == []


def test_a_comparison_without_a_p_counts_for_the_others() -> None:
    adjusted = holm([0.01, None, math.nan])
    assert adjusted[0] == pytest.approx(0.03) and adjusted[1] is None
    assert adjusted[2] is not None and math.isnan(adjusted[2])


def test_power_by_cohens_tables() -> None:
    """Paired t test with an effect of half a deviation, two-sided: 34 pairs give .808, 33 less than .8 (G*Power 3.1)."""
    assert power(34, 0.5, 1.0) == pytest.approx(0.8078, abs=5e-5) and 0.79 < power(33, -0.5, 1.0) < 0.8
    assert pairs_needed(0.5, 1.0) == 34 and pairs_needed(0.05, 0.1) == 34
    assert pairs_needed(0.8, 1.0) == 15


def test_power_by_drawing() -> None:
    import numpy as np

    draws = np.random.default_rng(0).normal(0.9, 1.0, (200_000, 6))
    t = draws.mean(axis=1) / draws.std(axis=1, ddof=1) * 6**0.5
    shown = float((abs(t) > 4.032143).mean())  # t of 5 degrees of freedom at 99 %
    assert power(6, 0.9, 1.0, 0.99) == pytest.approx(shown, abs=0.004)


def test_pairs_at_the_edges() -> None:
    """No deviation: two pairs; a tiny effect: more than is searched; a huge one: two, in spite of one degree of freedom."""
    assert pairs_needed(0.1, 0.0) == 2
    assert pairs_needed(0.001, 1.0) is None
    assert pairs_needed(100.0, 1.0) == 2 and power(2, 100.0, 1.0) == pytest.approx(1.0)


JUDGED = {
    "better": Difference(4, -0.2, 0.02, None, None),
    "worse": Difference(4, 0.2, 0.02, None, None),
    "as good as": Difference(4, 0.01, 0.02, None, None),  # [-.022, +.042]
    "no difference shown": Difference(4, 0.03, 0.02, None, None),  # [-.002, +.062]
    "diverged": Difference(4, math.nan, math.nan, math.nan, math.nan),
    "one pair": Difference(1, -0.2, None, None, None),
    "no pair": None,
}


@pytest.mark.parametrize("verdict", JUDGED)
def test_verdicts(verdict: str) -> None:
    assert judge(JUDGED[verdict], smallest=0.05) == verdict


def test_nothing_is_as_good_where_no_difference_is_too_small_to_matter() -> None:
    assert judge(JUDGED["as good as"]) == "no difference shown"
    assert judge(JUDGED["as good as"], confidence=0.99, smallest=0.05) == "no difference shown"  # [-.048, +.068]
