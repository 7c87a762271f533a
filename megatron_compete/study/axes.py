"""Losses of two variants at equal amounts of something: steps, floating-point operations, seconds or data.

One rule for the first three: whoever has had the smaller amount at its end is read there, and the other one where it has
had as much, between two probes by straight line. Ends that are near each other are compared as they are, because a
variant is then not cut off for a difference that is within what a clock can tell. With equal data both are read at their
best probe, whatever it took to get there: that many passes over the same samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from megatron_compete.study.config import AXES, Axis, Clock
from megatron_compete.study.logs import RunLog, Series
from megatron_compete.study.statistics import all_finite

NEAR = 0.02
"""Relative difference of two ends that counts as none."""
METERED: tuple[Axis, ...] = tuple(axis for axis in AXES if axis != "data")
"""Axes that count something up while a run trains."""


@dataclass(frozen=True)
class Reading:
    """A variant where it is compared."""

    losses: dict[int, float]
    """By seed."""
    step: float
    """Median over seeds where they differ."""
    is_end: bool


@dataclass(frozen=True)
class Meeting:
    """Two variants where they have had equal amounts."""

    axis: Axis
    variant: Reading
    other: Reading

    def cut_off(self, name: str, other: str) -> str | None:
        """Whichever of the two is read before its end because the other has ended; None at equal data too."""
        if self.axis == "data" or self.variant.is_end == self.other.is_end:
            return None
        return other if self.variant.is_end else name


def meter(runs: Sequence[RunLog], axis: Axis, clock: Clock) -> dict[int, float] | None:
    """{step: amount that the variant has had by then}, the median over its seeds; None where the logs do not have it.

    The time of a single run on a shared machine says as much about its neighbours as about the variant.
    """
    if axis == "steps":
        return {step: float(step) for step in pooled([run.loss for run in runs])}
    if axis == "seconds":
        return pooled([run.seconds[clock] for run in runs])
    counted = [run.flops for run in runs if run.flops is not None]
    return pooled(counted) if len(counted) == len(runs) else None


def pooled(series: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """The median over seeds at each step that all of them have."""
    steps = sorted(set.intersection(*(set(one) for one in series)))
    return {step: median(one[step] for one in series) for step in steps}


def value_at(series: Mapping[int, float], amounts: Mapping[int, float], amount: float) -> float:
    """The value that a series has after `amount`, between two probes by straight line.

    Args:
        amounts: {step: amount}, rising.
    Raises:
        ValueError: the amounts end before.
    """
    steps = sorted(series.keys() & amounts.keys())
    had = [amounts[step] for step in steps]
    if not steps or not had[0] <= amount <= had[-1]:
        raise ValueError(f"{amount} is not within {had[:1]} to {had[-1:]}")
    return float(np.interp(amount, had, [series[step] for step in steps]))


def meet(runs: Sequence[RunLog], others: Sequence[RunLog], axis: Axis, clock: Clock) -> Meeting | None:
    """Where two variants have had equal amounts; None where the logs of either do not have them."""
    if axis == "data":
        return Meeting(axis, best(runs), best(others))
    amounts, other_amounts = meter(runs, axis, clock), meter(others, axis, clock)
    if amounts is None or other_amounts is None:
        return None
    end, other_end = max(amounts.values()), max(other_amounts.values())
    if abs(end - other_end) <= NEAR * max(end, other_end):
        return Meeting(axis, at_end(runs), at_end(others))
    if end < other_end:
        return Meeting(axis, at_end(runs), _cut_off(others, other_amounts, end))
    return Meeting(axis, _cut_off(runs, amounts, other_end), at_end(others))


def at_end(runs: Sequence[RunLog]) -> Reading:
    """After the last step."""
    return Reading({run.seed: run.loss[max(run.loss)] for run in runs}, max(runs[0].loss), True)


def best(runs: Sequence[RunLog]) -> Reading:
    """At each run's lowest loss of all probes; nan for one that diverged."""
    lowest = {run.seed: min(run.loss.values()) if all_finite(run.loss.values()) else float("nan") for run in runs}
    steps = [min(run.loss, key=lambda step: (run.loss[step], step)) for run in runs]
    return Reading(lowest, median(steps), False)


def _cut_off(runs: Sequence[RunLog], amounts: Series, amount: float) -> Reading:
    losses = {run.seed: value_at(run.loss, amounts, amount) for run in runs}
    return Reading(losses, value_at({step: float(step) for step in amounts}, amounts, amount), False)


def used(runs: Sequence[RunLog], axis: Axis, clock: Clock, step: float) -> float | None:
    """How much of `axis` the variant has had by a step, which need not be a probe's."""
    amounts = meter(runs, axis, clock)
    return None if amounts is None else float(np.interp(step, list(amounts), list(amounts.values())))


def ratios(
    runs: Sequence[RunLog], step: float, others: Sequence[RunLog], other_step: float, clock: Clock
) -> dict[Axis, float]:
    """What a variant has had by a step relative to what the other has had by another, by axis that both logs have."""
    found: dict[Axis, float] = {}
    for axis in METERED:
        mine, theirs = used(runs, axis, clock, step), used(others, axis, clock, other_step)
        if mine is not None and theirs:
            found[axis] = mine / theirs
    return found
