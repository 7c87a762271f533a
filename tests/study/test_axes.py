"""Losses at equal amounts, against values worked out by hand."""

import math

import pytest

from megatron_compete.study.axes import at_end, best, meet, meter, pooled, ratios, used, value_at
from tests.study.fabricated import run_log

FALLING = {0: 4.0, 10: 3.0, 20: 2.0}
LONGER = {0: 4.0, 10: 3.0, 20: 2.0, 30: 1.5, 40: 1.0}


def test_a_variants_clock_is_the_median_over_its_seeds() -> None:
    assert pooled([{0: 0.0, 10: 5.0}, {0: 0.0, 10: 50.0}, {0: 0.0, 10: 6.0, 20: 12.0}]) == {0: 0.0, 10: 6.0}


def test_values_lie_on_the_line_between_probes() -> None:
    clock = {0: 0.0, 10: 4.0, 20: 12.0}
    series = {0: 3.0, 10: 2.0, 20: 1.0}
    assert value_at(series, clock, 4.0) == 2.0
    assert value_at(series, clock, 6.0) == pytest.approx(1.75)
    with pytest.raises(ValueError, match="not within"):
        value_at(series, clock, 12.1)


def test_a_longer_run_is_read_at_the_steps_of_the_shorter() -> None:
    long, short = [run_log("long", 1, LONGER)], [run_log("short", 1, {0: 4.0, 25: 2.2})]
    found = meet(long, short, "steps", "processor")
    assert found is not None and not found.variant.is_end and found.other.is_end
    assert (found.variant.losses, found.variant.step) == ({1: pytest.approx(1.75)}, pytest.approx(25.0))
    assert (found.other.losses, found.other.step) == ({1: 2.2}, 25)
    assert found.cut_off("long", "short") == "long"
    other_way = meet(short, long, "steps", "processor")
    assert other_way is not None and (other_way.variant, other_way.other) == (found.other, found.variant)


def test_equal_operations_and_equal_seconds_are_read_alike() -> None:
    """20 steps of 3 FLOPs are 60, which the other has after 30 of its steps; seconds end at 20 against 40."""
    costly, cheap = [run_log("costly", 1, FALLING, 1.0, 3.0)], [run_log("cheap", 1, LONGER, 1.0, 2.0)]
    flops = meet(costly, cheap, "flops", "processor")
    assert flops is not None and flops.other.step == pytest.approx(30) and flops.other.losses == {1: pytest.approx(1.5)}
    seconds = meet(costly, cheap, "seconds", "wall")
    assert seconds is not None and seconds.other.losses == {1: pytest.approx(2.0)}
    assert ratios(costly, flops.variant.step, cheap, flops.other.step, "processor") == {
        "steps": pytest.approx(20 / 30),
        "flops": pytest.approx(1.0),
        "seconds": pytest.approx(20 / 30),
    }
    assert used(cheap, "flops", "processor", 25) == pytest.approx(50)


def test_logs_without_operations_have_no_such_axis() -> None:
    old, new = [run_log("old", 1, FALLING)], [run_log("new", 1, FALLING, flops=1.0), run_log("new", 2, FALLING)]
    assert meter(old, "flops", "processor") is None and meter(new, "flops", "processor") is None
    assert meet(old, new, "flops", "processor") is None
    assert ratios(old, 20, new, 10, "processor") == {"steps": 2.0, "seconds": 2.0}


@pytest.mark.parametrize(("seconds", "is_end"), [(1.019, True), (1.03, False)])
def test_ends_that_are_near_are_compared_as_they_are(seconds: float, is_end: bool) -> None:
    slow, quick = [run_log("slow", 1, FALLING, seconds)], [run_log("quick", 1, FALLING)]
    found = meet(slow, quick, "seconds", "processor")
    assert found is not None and found.variant.is_end == is_end and found.other.is_end
    assert (found.variant.losses[1] == 2.0) == is_end
    assert found.cut_off("slow", "quick") == (None if is_end else "slow")


def test_equal_data_is_each_runs_own_best_probe() -> None:
    runs = [run_log("v", 1, {0: 4.0, 10: 2.0, 20: 3.0}), run_log("v", 2, {0: 4.0, 10: 2.5, 20: 2.4})]
    assert best(runs).losses == {1: 2.0, 2: 2.4} and best(runs).step == 15
    found = meet(runs, [run_log("w", 1, FALLING)], "data", "processor")
    assert found is not None and found.other.losses == {1: 2.0} and found.other.step == 20
    assert at_end(runs).losses == {1: 3.0, 2: 2.4}


def test_a_run_that_diverged_has_no_best_probe() -> None:
    found = best([run_log("v", 1, {0: 4.0, 10: 2.0, 20: math.nan}), run_log("v", 2, FALLING)])
    assert math.isnan(found.losses[1]) and found.losses[2] == 2.0
