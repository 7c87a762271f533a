"""A study's table: one row a variant, every difference from its baseline with its interval."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_compete.study.axes import METERED, at_end, meet, ratios
from megatron_compete.study.config import AXES, Axis, Study
from megatron_compete.study.logs import RunLog
from megatron_compete.study.statistics import CONFIDENCE, Difference, Spread, paired_difference, spread

LAST_METRICS = ("load-max", "load-min", "router-entropy", "margin", "coactivation", "change-rate", "agreement")
"""Shown as they are at the last probe; saturation half-way, because at the end it is 1."""
AXIS_NAMES: dict[Axis, str] = {"steps": "steps", "flops": "FLOPs", "seconds": "seconds", "data": "data"}
UNFAIR = "†"
"""Beside a difference of which one side was cut off while its learning rate decayed."""
UNITS = {"language": "nats/token", "regions": "share of the targets' variance"}


def unit_of(study: Study) -> str:
    """Of losses."""
    return UNITS[study.task]


@dataclass(frozen=True)
class Held:
    """A variant and its baseline at equal amounts."""

    loss: Spread
    """Of the variant, there."""
    difference: Difference | None
    """Loss minus the baseline's; None for a baseline, and without a pair."""
    cut_off: str | None
    """Whichever of the two is read before its end."""
    is_unfair: bool
    """That one's learning rate had not finished its decay."""


@dataclass(frozen=True)
class Row:
    """One variant."""

    variant: str
    label: str
    baseline: str
    steps: int
    loss: Spread
    """At the last step."""
    held: dict[Axis, Held]
    """By axis that the logs of both have."""
    costs: dict[Axis, float]
    """What the whole run takes relative to the baseline's."""
    metrics: dict[str, Spread]

    @property
    def is_baseline(self) -> bool:
        return self.variant == self.baseline

    def difference(self, axis: Axis) -> Difference | None:
        """Loss minus the baseline's at equal amounts, where there is such a pair."""
        return self.held[axis].difference if axis in self.held else None


def rows_of(study: Study, logs: Mapping[str, Sequence[RunLog]]) -> list[Row]:
    """Rows in the study's order, of variants whose baseline is there too."""
    return [
        _row(study, logs[name], logs[study.baseline_of(name)])
        for name in study.variants
        if name in logs and study.baseline_of(name) in logs
    ]


def _row(study: Study, runs: Sequence[RunLog], baseline: Sequence[RunLog]) -> Row:
    variant = runs[0].variant
    is_baseline = baseline[0].variant == variant
    held: dict[Axis, Held] = {}
    for axis in AXES:
        meeting = meet(runs, baseline, axis, study.clock)
        if meeting is None:
            continue
        mine, theirs = meeting.variant.losses, meeting.other.losses
        difference = None if is_baseline else paired_difference(mine, theirs)
        cut_off = meeting.cut_off(variant, baseline[0].variant)
        unfair = cut_off is not None and study.decays(cut_off)
        held[axis] = Held(spread(list(mine.values())), difference, cut_off, unfair)
    end, other_end = at_end(runs), at_end(baseline)
    return Row(
        variant,
        study.label_of(variant),
        baseline[0].variant,
        study.steps_of(variant),
        spread(list(end.losses.values())),
        held,
        ratios(runs, end.step, baseline, other_end.step, study.clock),
        _metrics(runs, study.steps_of(variant)),
    )


def _metrics(runs: Sequence[RunLog], steps: int) -> dict[str, Spread]:
    found = {}
    for name in METRIC_COLUMNS:
        values = [value for run in runs if (value := shown_metric(run, name, steps)) is not None]
        if values:
            found[name] = spread(values)
    return found


def shown_metric(run: RunLog, name: str, steps: int) -> float | None:
    """The one value of a run's metric that tables and figures show; None where it has none."""
    series = run.metrics.get(name)
    if not series:
        return None
    return series[min(series, key=lambda step: abs(step - steps / 2)) if name == "saturation" else max(series)]


METRIC_COLUMNS = (*LAST_METRICS, "saturation")
HELD_COLUMNS = ("loss", "cut-off", "pairs", "difference", "half-width", "p")


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """The table for programs: all axes, and what both logs do not have left empty."""
    columns = ["variant", "label", "baseline", "seeds", "steps", "loss", "loss-sd"]
    columns += [f"{axis}-{name}" for axis in AXES for name in HELD_COLUMNS]
    columns += [*(f"{axis}-ratio" for axis in METERED), *METRIC_COLUMNS]
    with path.open("w", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(columns)
        for row in rows:
            held = [cell for axis in AXES for cell in _held_cells(row.held.get(axis))]
            costs = [number(row.costs.get(axis)) for axis in METERED]
            metrics = [number(row.metrics[name].mean if name in row.metrics else None) for name in METRIC_COLUMNS]
            table.writerow([
                row.variant, row.label, row.baseline, row.loss.count, row.steps, number(row.loss.mean),
                number(row.loss.deviation), *held, *costs, *metrics,
            ])  # fmt: skip


def _held_cells(held: Held | None) -> list[str]:
    if held is None:
        return [""] * len(HELD_COLUMNS)
    return [number(held.loss.mean), held.cut_off or "", *difference_cells(held.difference)]


def difference_cells(difference: Difference | None) -> list[str]:
    """Pairs, mean, half width and p for programs."""
    if difference is None:
        return [""] * 4
    numbers = (difference.mean, difference.half_width, difference.p_value)
    return [str(difference.count), *(number(one) for one in numbers)]


def number(value: float | None) -> str:
    """For programs."""
    return "" if value is None else f"{value:.6g}"


def shown_axes(study: Study, rows: Sequence[Row]) -> list[Axis]:
    """Axes that people are shown: those that any pair has, and equal data where a declared comparison asks for it.

    A study whose samples are never seen twice has losses at best probes too, which say nothing that their ends do not.
    """
    wanted = {one.at for one in study.comparisons}
    return [
        axis
        for axis in AXES
        if (axis != "data" or "data" in wanted) and any(row.difference(axis) is not None for row in rows)
    ]


def losses_table(rows: Sequence[Row], axes: Sequence[Axis]) -> str:
    """Losses, and what the runs take, for people."""
    costs = [axis for axis in METERED if axis == "seconds" or axis in axes]
    best = ["best loss"] if "data" in axes else []
    lines = [_line(["variant", "seeds", "loss", *best, *(AXIS_NAMES[axis] for axis in costs)])]
    lines.append("|---" * (3 + len(best) + len(costs)) + "|")
    for row in rows:
        ratio = {axis: f"{row.costs[axis]:.2f}x" if axis in row.costs else "" for axis in costs}
        if "steps" in ratio:
            ratio["steps"] = str(row.steps)
        shown = [show_spread(row.held["data"].loss)] if best else []
        lines.append(_line([row.label, str(row.loss.count), show_spread(row.loss), *shown, *ratio.values()]))
    return "\n".join(lines) + "\n"


def differences_table(rows: Sequence[Row], axes: Sequence[Axis], labels: Mapping[str, str]) -> str:
    """Differences from the baseline on each axis, for people; p values are in `table.csv`.

    Args:
        labels: of the variants.
    """
    several = len({row.baseline for row in rows}) > 1
    lines = [_line(["variant", *(["baseline"] if several else []), *(f"at equal {AXIS_NAMES[axis]}" for axis in axes)])]
    lines.append("|---" * (1 + several + len(axes)) + "|")
    for row in rows:
        if row.is_baseline:
            continue
        shown = [_held(row.held.get(axis)) for axis in axes]
        lines.append(_line([row.label, *([labels[row.baseline]] if several else []), *shown]))
    return "\n".join(lines) + "\n"


def _held(held: Held | None) -> str:
    return "" if held is None else show_difference(held.difference) + (f" {UNFAIR}" if held.is_unfair else "")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def statistics_table(rows: Sequence[Row]) -> str:
    """The router statistics, for people; what a variant does not have is left empty."""
    lines = ["| variant | " + " | ".join(METRIC_COLUMNS) + " |", "|---" * (len(METRIC_COLUMNS) + 1) + "|"]
    for row in rows:
        cells = [f"{row.metrics[name].mean:.3f}" if name in row.metrics else "" for name in METRIC_COLUMNS]
        lines.append(f"| {row.label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def show_spread(values: Spread) -> str:
    """1.633 ± 0.013, the second being the standard deviation."""
    return f"{values.mean:.4f}" + ("" if values.deviation is None else f" ± {values.deviation:.4f}")


def show_difference(difference: Difference | None, confidence: float = CONFIDENCE) -> str:
    """+0.032 [+0.010, +0.054], the second being the interval."""
    if difference is None:
        return "no pair"
    if math.isnan(difference.mean):
        return "diverged"
    interval = difference.interval(confidence)
    if interval is None:
        return f"{difference.mean:+.4f} (one pair)"
    low, high = interval
    return f"{difference.mean:+.4f} [{low:+.4f}, {high:+.4f}]"
