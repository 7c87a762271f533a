"""A study's figures: small multiples, one variant a panel against its baseline in grey.

Colours are Okabe and Ito's, which people with colour-blindness can tell apart.
"""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_compete.study.axes import meter
from megatron_compete.study.config import Axis, Study
from megatron_compete.study.headroom import Check
from megatron_compete.study.logs import METRICS, RunLog, Series
from megatron_compete.study.statistics import CONFIDENCE, Difference
from megatron_compete.study.table import AXIS_NAMES, Row, shown_metric, unit_of

BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8C8C8C"
COLUMNS = 4
SHOWN_SHARE = 2 / 3
"""Loss axes show the last part of training: at the start all variants fall alike."""
STATISTICS = ("load-max", "router-entropy", "margin", "coactivation", "change-rate", "saturation")

Logs = Mapping[str, Sequence[RunLog]]
Curve = tuple[list[float], np.ndarray]
"""x, and values [seeds, points]."""


def captions(study: Study) -> dict[str, str]:
    """{file: what it shows} of all figures that a study can have."""
    band = "Lines are means over seeds, bands reach from the lowest seed to the highest."
    clock = {"processor": "processor time of the rank", "wall": "wall-clock time"}[study.clock]
    loss = "Held-out loss"
    return {
        "headroom.png": f"{loss} minus the baseline's of variants that bound what routing can gain: mean over seeds and its {CONFIDENCE:.0%} interval. Hollow: the interval holds 0.",
        "differences.png": f"{loss} minus the baseline's: mean over seeds and its {CONFIDENCE:.0%} interval. Hollow: the interval holds 0.",
        "gaps.png": f"{loss} minus the baseline's of the same seed, over the steps. {band}",
        "loss-steps.png": f"{loss} against steps, each variant (blue) over its baseline (grey), last two thirds. {band}",
        "loss-flops.png": f"{loss} against floating-point operations of training (median over seeds). {band}",
        "loss-seconds.png": f"{loss} against seconds of training steps ({clock}, median over seeds). {band}",
        "agreement.png": f"Agreement: {METRICS['agreement']}. {band}",
        "load.png": f"Load of the busiest (red) and the idlest (blue) expert of any layer, relative to the mean. {band}",
        "router-statistics.png": "Router statistics at the last probe, saturation half-way; a dot for each seed, a bar for the mean.",
        "experts.png": "Tokens of each expert relative to its layer's mean at the last probe, first seed; experts are sorted by load.",
    }  # fmt: skip


def draw_all(
    study: Study, logs: Logs, rows: Sequence[Row], axes: Sequence[Axis], checks: Sequence[Check], folder: Path
) -> dict[str, str]:
    """Write every figure that there are data for; {file: caption}."""
    figures: dict[str, Callable[[], Any]] = {
        "headroom.png": lambda: draw_headroom(study, checks),
        "differences.png": lambda: draw_differences(study, rows, axes),
        "gaps.png": lambda: draw_gaps(study, logs),
        "loss-steps.png": lambda: draw_losses(study, logs, "steps"),
        "loss-flops.png": lambda: draw_losses(study, logs, "flops"),
        "loss-seconds.png": lambda: draw_losses(study, logs, "seconds"),
        "agreement.png": lambda: draw_metric(study, logs, {"agreement": GREEN}, "agreement", (0, 1)),
        "load.png": lambda: draw_metric(study, logs, {"load-max": VERMILION, "load-min": BLUE}, "tokens / mean", None),
        "router-statistics.png": lambda: draw_statistics(study, logs),
        "experts.png": lambda: draw_experts(study, logs),
    }
    drawn = {}
    for name, caption in captions(study).items():
        (folder / name).unlink(missing_ok=True)
        figure = figures[name]()
        if figure is not None:
            _save(figure, folder / name)
            drawn[name] = caption
    return drawn


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    """As PNG, without the library's version in it."""
    figure.savefig(path, dpi=110, metadata={"Software": None})
    _pyplot().close(figure)


def _panels(count: int, width: float = 2.6, height: float = 2.1, **options: Any) -> tuple[Any, list[Any]]:
    """A figure and `count` axes in rows of `COLUMNS`."""
    columns = min(COLUMNS, count)
    rows = math.ceil(count / columns)
    figure, grid = _pyplot().subplots(rows, columns, figsize=(max(width * columns, 4), height * rows + 0.4),
                                      squeeze=False, layout="constrained", **options)  # fmt: skip
    axes = list(grid.flat)
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, axes[:count]


def _finish(axes: Any, title: str) -> None:
    axes.set_title(_wrapped(title), fontsize=8)
    axes.tick_params(labelsize=7)
    axes.xaxis.get_offset_text().set_fontsize(7)
    axes.spines[["top", "right"]].set_visible(False)


def _wrapped(text: str, width: int = 30) -> str:
    return "\n".join(textwrap.wrap(text, width))


def _band(axes: Any, curve: Curve, colour: str) -> None:
    """Mean and range over seeds."""
    x, values = curve
    axes.fill_between(x, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.25, linewidth=0)
    axes.plot(x, values.mean(axis=0), color=colour, linewidth=1.3)


def _common(series: Sequence[Series]) -> tuple[list[int], np.ndarray]:
    """Steps that all seeds have, and the values [seeds, steps]."""
    steps = sorted(set.intersection(*(set(one) for one in series)))
    return steps, np.array([[one[step] for step in steps] for one in series])


def loss_curve(study: Study, runs: Sequence[RunLog], over: Axis) -> Curve:
    """Held-out losses of a variant over an axis that its logs have."""
    steps, losses = _common([run.loss for run in runs])
    amounts = meter(runs, over, study.clock)
    assert amounts is not None, f"logs without {over}"
    return [amounts[step] for step in steps], losses


def same_seeds(runs: Sequence[RunLog], like: Sequence[RunLog]) -> list[RunLog]:
    """The runs whose seeds the others have too; all where none has."""
    seeds = {run.seed for run in like}
    return [run for run in runs if run.seed in seeds] or list(runs)


def draw_gaps(study: Study, logs: Logs) -> Any:
    """Each variant's loss minus its baseline's of the same seed, over the steps; None without a pair."""
    pairs: dict[str, list[Series]] = {}
    for name, runs in logs.items():
        baseline = {run.seed: run.loss for run in logs.get(study.baseline_of(name), ())}
        if study.baseline_of(name) != name and any(run.seed in baseline for run in runs):
            pairs[name] = [_minus(run.loss, baseline[run.seed]) for run in runs if run.seed in baseline]
    if not pairs:
        return None
    figure, panels = _panels(len(pairs), sharex=True, sharey=True)
    for axes, (name, gaps) in zip(panels, pairs.items()):
        steps, values = _common(gaps)
        axes.axhline(0, color=GREY, linewidth=1)
        _band(axes, ([float(step) for step in steps], values), BLUE)
        _finish(axes, study.label_of(name))
    figure.supxlabel("steps", fontsize=9)
    figure.supylabel(f"loss minus baseline's ({unit_of(study)})", fontsize=9)
    return figure


def _minus(one: Series, other: Series) -> Series:
    return {step: one[step] - other[step] for step in one.keys() & other.keys()}


def draw_losses(study: Study, logs: Logs, over: Axis) -> Any:
    """Each variant over its baseline; None where no such pair has the axis."""
    metered = [name for name, runs in logs.items() if meter(runs, over, study.clock) is not None]
    names = [name for name in metered if study.baseline_of(name) in metered]
    names = [name for name in names if study.baseline_of(name) != name] or names
    if not names:
        return None
    figure, panels = _panels(len(names), sharex=over == "steps", sharey=True)
    lowest, highest = math.inf, -math.inf
    for axes, name in zip(panels, names):
        baseline = same_seeds(logs[study.baseline_of(name)], logs[name])
        for runs, colour in ((baseline, GREY), (logs[name], BLUE)):
            curve = loss_curve(study, runs, over)
            first = round(len(curve[0]) * (1 - SHOWN_SHARE))
            finite = np.where(np.isfinite(curve[1]), curve[1], np.nan)
            lowest = np.nanmin([lowest, *finite.flat])
            highest = np.nanmax([highest, *finite[:, first:].flat])
            _band(axes, curve, colour)
        _finish(axes, study.label_of(name))
    margin = 0.04 * (highest - lowest)
    for axes in panels:
        axes.set_ylim(lowest - margin, highest + margin)
    figure.supxlabel(AXIS_NAMES[over], fontsize=9)
    figure.supylabel(f"held-out loss ({unit_of(study)})", fontsize=9)
    return figure


def draw_metric(study: Study, logs: Logs, colours: Mapping[str, str], label: str, limits: tuple[float, float] | None) -> Any:  # fmt: skip
    """Metrics over the steps; None where no variant has them."""
    names = [name for name, runs in logs.items() if all(run.metrics.get(one) for one in colours for run in runs)]
    if not names:
        return None
    figure, panels = _panels(len(names), sharex=True, sharey=True)
    for axes, name in zip(panels, names):
        for metric, colour in colours.items():
            steps, values = _common([run.metrics[metric] for run in logs[name]])
            _band(axes, ([float(step) for step in steps], values), colour)
        _finish(axes, study.label_of(name))
        if limits:
            axes.set_ylim(*limits)
    figure.supxlabel("steps", fontsize=9)
    figure.supylabel(label, fontsize=9)
    return figure


def draw_headroom(study: Study, checks: Sequence[Check]) -> Any:
    """The ladder of each check, its baseline at 0."""
    checks = [one for one in checks if any(arm.difference is not None for arm in one.arms.values())]
    if not checks:
        return None
    rungs = max(sum(arm.variant is not None for arm in one.arms.values()) for one in checks)
    figure, panels = _pyplot().subplots(1, len(checks), squeeze=False, sharex=True, figsize=(4.5 * len(checks) + 1.5, 0.34 * rungs + 1.2),
                                        layout="constrained")  # fmt: skip
    for axes, check in zip(panels.flat, checks):
        arms = [arm for arm in check.arms.values() if arm.variant is not None]
        axes.axvline(0, color=GREY, linewidth=1)
        _intervals(axes, [arm.difference for arm in arms])
        axes.plot([0], [[arm.part for arm in arms].index("baseline")], "D", color=GREY, markersize=5)
        axes.set_yticks(range(len(arms)), [_wrapped(_rung(arm.part, arm.label)) for arm in arms], fontsize=8)
        axes.set_ylim(len(arms) - 0.5, -0.5)
        _finish(axes, f"around {check.label}" if len(checks) > 1 else "")
        axes.set_xlabel(f"loss minus {check.label}'s ({unit_of(study)}); left is better", fontsize=8)
    return figure


def _rung(part: str, label: str) -> str:
    return label if part == "baseline" else f"{part.replace('-', ' ')}: {label}"


def draw_differences(study: Study, rows: Sequence[Row], axes: Sequence[Axis]) -> Any:
    """Means and intervals of the paired differences, a panel an axis."""
    compared = [row for row in rows if not row.is_baseline]
    if not compared or not axes:
        return None
    figure, panels = _pyplot().subplots(1, len(axes), sharey=True, squeeze=False, figsize=(2.9 * len(axes) + 2.7, 0.32 * len(compared) + 1.3),
                                        layout="constrained")  # fmt: skip
    for panel, axis in zip(panels.flat, axes):
        _intervals(panel, [row.difference(axis) for row in compared])
        panel.axvline(0, color=GREY, linewidth=1)
        _finish(panel, f"at equal {AXIS_NAMES[axis]}")
    figure.supxlabel(f"loss minus baseline's ({unit_of(study)}); left is better", fontsize=8)
    first = panels.flat[0]
    first.set_yticks(range(len(compared)), [row.label for row in compared], fontsize=8)
    first.set_ylim(len(compared) - 0.5, -0.5)
    return figure


def _intervals(axes: Any, differences: Sequence[Difference | None]) -> None:
    for place, one in enumerate(differences):
        if one is not None and math.isfinite(one.mean):
            clear = one.half_width is not None and abs(one.mean) > one.half_width
            axes.errorbar(one.mean, place, xerr=one.half_width, fmt="o", markersize=5, capsize=3,
                          color=BLUE, markerfacecolor=BLUE if clear else "white")  # fmt: skip


def draw_statistics(study: Study, logs: Logs) -> Any:
    """Dots by variant, one panel a statistic; None where no router has any."""
    values = {
        name: {one: [value for run in runs if (value := shown_metric(run, one, study.steps_of(name))) is not None] for one in STATISTICS}
        for name, runs in logs.items()
    }  # fmt: skip
    values = {name: found for name, found in values.items() if any(found.values())}
    if not values:
        return None
    figure, panels = _pyplot().subplots(1, len(STATISTICS), sharey=True, figsize=(1.9 * len(STATISTICS) + 1, 0.3 * len(values) + 1.2),
                                        layout="constrained")  # fmt: skip
    for axes, statistic in zip(panels, STATISTICS):
        for place, found in enumerate(values.values()):
            if found[statistic]:
                axes.plot(
                    found[statistic], [place] * len(found[statistic]), "o", markersize=3.5, color=ORANGE, alpha=0.8
                )
                axes.plot([float(np.mean(found[statistic]))], [place], "|", markersize=11, color="black")
        _finish(axes, statistic)
    panels[0].set_yticks(range(len(values)), [study.label_of(name) for name in values], fontsize=8)
    panels[0].set_ylim(len(values) - 0.5, -0.5)
    return figure


def draw_experts(study: Study, logs: Logs) -> Any:
    """Heat maps of the load by layer and expert; None where no router has any."""
    logs = {name: runs for name, runs in logs.items() if runs[0].load_LE.size}
    if not logs:
        return None
    figure, panels = _panels(len(logs), height=1.7)
    image = None
    for axes, (name, runs) in zip(panels, logs.items()):
        load_LE = -np.sort(-runs[0].load_LE, axis=1)
        image = axes.imshow(load_LE, cmap="viridis", vmin=0, vmax=3, aspect="auto", interpolation="nearest")
        layers = len(load_LE)
        axes.set_yticks(range(0, layers, max(1, layers // 4)), range(1, layers + 1, max(1, layers // 4)))
        axes.set_xticks([])
        _finish(axes, study.label_of(name))
    figure.supylabel("layer", fontsize=9)
    figure.supxlabel("experts, busiest first", fontsize=9)
    if image is not None:
        bar = figure.colorbar(image, ax=panels, shrink=0.6, extend="max")
        bar.set_label("tokens / mean", fontsize=8)
    return figure
