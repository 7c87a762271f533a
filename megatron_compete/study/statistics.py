"""Means, paired differences and their intervals. Pairs are runs of one seed: the same text in the same order, and the
same initial weights."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """Values of one variant over its seeds."""

    count: int
    mean: float
    deviation: float | None
    """Sample standard deviation; None for one value."""


@dataclass(frozen=True)
class Difference:
    """A variant minus its baseline over the seeds that both have."""

    count: int
    mean: float
    deviation: float | None
    half_width: float | None
    """Of the t interval at `CONFIDENCE`; None for one pair."""
    p_value: float | None
    """Of the paired t test, two-sided."""


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation; nan where a run diverged."""
    if not all(map(math.isfinite, values)):
        return Spread(len(values), math.nan, math.nan if len(values) > 1 else None)
    return Spread(len(values), mean(values), stdev(values) if len(values) > 1 else None)


def paired_difference(variant: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """Student's t interval of the mean of variant - baseline, by seed; None where no seed is in both."""
    from scipy import stats

    differences = [variant[seed] - baseline[seed] for seed in sorted(variant.keys() & baseline.keys())]
    if not differences:
        return None
    if not all(map(math.isfinite, differences)):  # a run that diverged: no interval, and no test that could be passed
        return Difference(len(differences), math.nan, math.nan, math.nan, math.nan)
    count, middle = len(differences), mean(differences)
    if count == 1:
        return Difference(1, middle, None, None, None)
    deviation = stdev(differences)
    if deviation == 0:  # of which scipy makes nan and warnings
        return Difference(count, middle, 0.0, 0.0, float(middle == 0))
    test = stats.ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval(CONFIDENCE)
    return Difference(count, middle, deviation, float(high - low) / 2, float(test.pvalue))


def pooled_clock(seconds: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Seconds that a variant takes to each step: the median over its seeds.

    The time of a single run on a shared machine says as much about its neighbours as about the variant.
    """
    steps = sorted(set.intersection(*(set(one) for one in seconds)))
    return {step: median(one[step] for one in seconds) for step in steps}


def at_seconds(series: Mapping[int, float], clock: Mapping[int, float], seconds: float) -> float:
    """The value that a series has after `seconds`, between two probes by straight line.

    Raises:
        ValueError: the clock ends before.
    """
    steps = sorted(series.keys() & clock.keys())
    times = [clock[step] for step in steps]
    if not steps or not times[0] <= seconds <= times[-1]:
        raise ValueError(f"{seconds} is not within the clock's {times[:1]} to {times[-1:]}")
    return float(np.interp(seconds, times, [series[step] for step in steps]))
