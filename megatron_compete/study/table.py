"""A study's table: one row a variant, every difference with its interval."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_compete.study.config import Study
from megatron_compete.study.logs import RunLog
from megatron_compete.study.statistics import (
    Difference,
    Spread,
    at_seconds,
    paired_difference,
    pooled_clock,
    spread,
)

LAST_METRICS = ("load-max", "load-min", "router-entropy", "margin", "coactivation", "change-rate", "agreement")
"""Shown as they are at the last probe; saturation half-way, because at the end it is 1."""


@dataclass(frozen=True)
class Row:
    """One variant."""

    variant: str
    label: str
    baseline: str
    loss: Spread
    """At the last step."""
    by_steps: Difference | None
    """Loss minus the baseline's at equal steps; None for a baseline."""
    loss_by_seconds: Spread
    """When the faster of variant and baseline is done."""
    by_seconds: Difference | None
    cost: float
    """Seconds of all steps relative to the baseline's."""
    metrics: dict[str, Spread]


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
    loss, other = final_losses(runs), final_losses(baseline)
    clock, other_clock = (pooled_clock([run.seconds[study.clock] for run in some]) for some in (runs, baseline))
    end = min(max(clock.values()), max(other_clock.values()))
    then = {run.seed: at_seconds(run.loss, clock, end) for run in runs}
    other_then = {run.seed: at_seconds(run.loss, other_clock, end) for run in baseline}
    return Row(
        variant,
        study.label_of(variant),
        baseline[0].variant,
        spread(list(loss.values())),
        None if is_baseline else paired_difference(loss, other),
        spread(list(then.values())),
        None if is_baseline else paired_difference(then, other_then),
        max(clock.values()) / max(other_clock.values()),
        _metrics(runs, study.steps_of(variant)),
    )


def final_losses(runs: Sequence[RunLog]) -> dict[int, float]:
    """{seed: held-out loss after the last step}"""
    return {run.seed: run.loss[max(run.loss)] for run in runs}


def _metrics(runs: Sequence[RunLog], steps: int) -> dict[str, Spread]:
    found = {}
    for name in LAST_METRICS:
        values = [run.metrics[name][max(run.metrics[name])] for run in runs if run.metrics.get(name)]
        if values:
            found[name] = spread(values)
    half = [min(run.metrics["saturation"], key=lambda step: abs(step - steps / 2)) for run in runs]
    found["saturation"] = spread([run.metrics["saturation"][step] for run, step in zip(runs, half)])
    return found


METRIC_COLUMNS = (*LAST_METRICS, "saturation")
DIFFERENCE_COLUMNS = ("pairs", "difference", "half-width", "p")


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """The table for programs."""
    columns = ["variant", "label", "baseline", "seeds", "loss", "loss-sd"]
    columns += [f"steps-{name}" for name in DIFFERENCE_COLUMNS]
    columns += ["seconds-loss", *(f"seconds-{name}" for name in DIFFERENCE_COLUMNS), "cost", *METRIC_COLUMNS]
    with path.open("w", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(columns)
        for row in rows:
            metrics = [_number(row.metrics[name].mean if name in row.metrics else None) for name in METRIC_COLUMNS]
            table.writerow([
                row.variant, row.label, row.baseline, row.loss.count, _number(row.loss.mean),
                _number(row.loss.deviation), *_difference_cells(row.by_steps), _number(row.loss_by_seconds.mean),
                *_difference_cells(row.by_seconds), _number(row.cost), *metrics,
            ])  # fmt: skip


def _difference_cells(difference: Difference | None) -> list[str]:
    if difference is None:
        return [""] * len(DIFFERENCE_COLUMNS)
    numbers = (difference.mean, difference.half_width, difference.p_value)
    return [str(difference.count), *(_number(number) for number in numbers)]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def markdown_table(rows: Sequence[Row]) -> str:
    """Losses and differences, for people."""
    lines = [
        "| variant | seeds | loss | difference at equal steps | p | difference at equal seconds | p | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.label} | {row.loss.count} | {show_spread(row.loss)} | {_versus(row, row.by_steps)} | {_p(row.by_steps)} | "
            f"{_versus(row, row.by_seconds)} | {_p(row.by_seconds)} | {row.cost:.2f}x |"
        )
    return "\n".join(lines) + "\n"


def _versus(row: Row, difference: Difference | None) -> str:
    return "baseline" if row.variant == row.baseline else show_difference(difference)


def _p(difference: Difference | None) -> str:
    return "" if difference is None or difference.p_value is None else f"{difference.p_value:.2g}"


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


def show_difference(difference: Difference | None) -> str:
    """+0.032 [+0.010, +0.054], the second being the interval."""
    if difference is None:
        return "no pair"
    if difference.half_width is None:
        return f"{difference.mean:+.4f} (one pair)"
    low, high = difference.mean - difference.half_width, difference.mean + difference.half_width
    return f"{difference.mean:+.4f} [{low:+.4f}, {high:+.4f}]"
