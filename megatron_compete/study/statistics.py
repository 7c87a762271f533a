"""Means, paired differences with their intervals, corrections for many comparisons, and power. Pairs are runs of one
seed: the same text in the same order, and the same initial weights."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Literal

CONFIDENCE = 0.95
POWER = 0.8
"""Share of studies that would show a difference that is there."""
MOST_PAIRS = 1000
"""Where the search for a number of pairs ends."""

Verdict = Literal["better", "worse", "as good as", "no difference shown", "diverged", "one pair", "no pair"]
"""`better`, `worse`: the interval is clear of 0. `as good as`: it holds 0 and lies within the smallest difference that
matters. `no difference shown`: it holds 0 and also differences that would matter. The others: there is no interval."""


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

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float] | None:
        """Student's t interval; None for one pair and where a run diverged."""
        from scipy import stats

        if self.deviation is None or math.isnan(self.mean):
            return None
        half = float(stats.t.isf((1 - confidence) / 2, self.count - 1)) * self.deviation / math.sqrt(self.count)
        return self.mean - half, self.mean + half


def all_finite(values: Iterable[float]) -> bool:
    """Whether no run diverged."""
    return all(map(math.isfinite, values))


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation; nan where a run diverged."""
    if not all_finite(values):
        return Spread(len(values), math.nan, math.nan if len(values) > 1 else None)
    return Spread(len(values), mean(values), stdev(values) if len(values) > 1 else None)


def paired_difference(variant: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """Student's t interval of the mean of variant - baseline, by seed; None where no seed is in both."""
    from scipy import stats

    differences = [variant[seed] - baseline[seed] for seed in sorted(variant.keys() & baseline.keys())]
    if not differences:
        return None
    if not all_finite(differences):  # a run that diverged: no interval, and no test that could be passed
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


def judge(difference: Difference | None, confidence: float = CONFIDENCE, smallest: float | None = None) -> Verdict:
    """What the interval says of a variant; lower losses are better.

    Args:
        smallest: the smallest difference that matters; None: any does, and nothing is as good as anything else.
    """
    if difference is None:
        return "no pair"
    if math.isnan(difference.mean):
        return "diverged"
    interval = difference.interval(confidence)
    if interval is None:
        return "one pair"
    low, high = interval
    if low > 0 or high < 0:
        return "better" if high < 0 else "worse"
    return "as good as" if smallest is not None and max(-low, high) <= smallest else "no difference shown"


def simultaneous(count: int) -> float:
    """The confidence of each of `count` intervals at which all hold together with `CONFIDENCE` (Bonferroni)."""
    return 1 - (1 - CONFIDENCE) / max(count, 1)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p values of a family of tests, whose size is the list's: 'A simple sequentially rejective multiple test
    procedure' (Holm 1979). A test without a p value, or with nan, counts as one that is never rejected."""
    numbers = [1.0 if value is None or math.isnan(value) else value for value in p_values]
    adjusted: list[float | None] = [None] * len(numbers)
    least = 0.0
    for place, number in enumerate(sorted(range(len(numbers)), key=numbers.__getitem__)):
        least = max(least, min(1.0, (len(numbers) - place) * numbers[number]))
        given = p_values[number]
        adjusted[number] = given if given is None or math.isnan(given) else least
    return adjusted


def power(pairs: int, difference: float, deviation: float, confidence: float = CONFIDENCE) -> float:
    """Probability that the two-sided paired t test shows a true difference (noncentral t).

    Args:
        deviation: of the paired differences, positive.
    """
    from scipy import stats

    degrees, shift = pairs - 1, abs(difference) / deviation * math.sqrt(pairs)
    limit = float(stats.t.isf((1 - confidence) / 2, degrees))
    return float(stats.nct.sf(limit, degrees, shift) + stats.nct.cdf(-limit, degrees, shift))


def pairs_needed(difference: float, deviation: float, confidence: float = CONFIDENCE) -> int | None:
    """The least number of pairs with at least `POWER`; None above `MOST_PAIRS`."""
    if deviation == 0:
        return 2
    low, high = 1, 2
    while power(high, difference, deviation, confidence) < POWER:
        low, high = high, 2 * high
        if low >= MOST_PAIRS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, difference, deviation, confidence) >= POWER else (middle, high)
    return high if high <= MOST_PAIRS else None
