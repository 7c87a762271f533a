"""A study's figures: small multiples, one variant a panel against its baseline in grey.

Colours are Okabe and Ito's, which people with colour-blindness can tell apart.
"""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_compete.study.config import Study
from megatron_compete.study.logs import METRICS, RunLog, Series
from megatron_compete.study.statistics import CONFIDENCE, Difference, pooled_clock
from megatron_compete.study.table import Row

BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8C8C8C"
COLUMNS = 4
SHOWN_SHARE = 2 / 3
"""Loss axes show the last part of training: at the start all variants fall alike."""
STATISTICS = ("load-max", "router-entropy", "margin", "coactivation", "change-rate", "saturation")

Logs = Mapping[str, Sequence[RunLog]]
Curve = tuple[list[float], np.ndarray]
"""x, and values [seeds, points]."""


def draw_all(study: Study, logs: Logs, rows: Sequence[Row], folder: Path) -> dict[str, str]:
    """Write every figure that there are data for; {file: caption}."""
    band = "Lines are means over seeds, bands reach from the lowest seed to the highest."
    clock = {"processor": "processor time of the rank", "wall": "wall-clock time"}[study.clock]
    figures: dict[str, tuple[Callable[[], Any], str]] = {
        "differences.png": (
            lambda: draw_differences(rows),
            f"Held-out loss minus the baseline's: mean over seeds and its {CONFIDENCE:.0%} interval. Hollow: the interval holds 0.",
        ),
        "gaps.png": (
            lambda: draw_gaps(study, logs),
            f"Held-out loss minus the baseline's of the same seed, over the steps. {band}",
        ),
        "loss-steps.png": (
            lambda: draw_losses(study, logs, "steps"),
            f"Held-out loss against steps, each variant (blue) over its baseline (grey), last two thirds. {band}",
        ),
        "loss-seconds.png": (
            lambda: draw_losses(study, logs, "seconds"),
            f"Held-out loss against seconds of training steps ({clock}, median over seeds). {band}",
        ),
        "agreement.png": (
            lambda: draw_metric(study, logs, {"agreement": GREEN}, "agreement", (0, 1)),
            f"Agreement: {METRICS['agreement']}. {band}",
        ),
        "load.png": (
            lambda: draw_metric(study, logs, {"load-max": VERMILION, "load-min": BLUE}, "tokens / mean", None),
            f"Load of the busiest (red) and the idlest (blue) expert of any layer, relative to the mean. {band}",
        ),
        "router-statistics.png": (
            lambda: draw_statistics(study, logs),
            "Router statistics at the last probe, saturation half-way; a dot for each seed, a bar for the mean.",
        ),
        "experts.png": (
            lambda: draw_experts(study, logs),
            "Tokens of each expert relative to its layer's mean at the last probe, first seed; experts are sorted by load.",
        ),
    }
    drawn = {}
    for name, (draw, caption) in figures.items():
        figure = draw()
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


def loss_curve(runs: Sequence[RunLog], clock: str, over: str) -> Curve:
    """Held-out losses of a variant over `steps` or `seconds`."""
    steps, losses = _common([run.loss for run in runs])
    if over == "steps":
        return [float(step) for step in steps], losses
    seconds = pooled_clock([run.seconds[clock] for run in runs])
    return [seconds[step] for step in steps], losses


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
    figure.supylabel("loss minus baseline's (nats/token)", fontsize=9)
    return figure


def _minus(one: Series, other: Series) -> Series:
    return {step: one[step] - other[step] for step in one.keys() & other.keys()}


def draw_losses(study: Study, logs: Logs, over: str) -> Any:
    """Each variant over its baseline."""
    names = [name for name in logs if study.baseline_of(name) != name and study.baseline_of(name) in logs]
    names = names or [name for name in logs if study.baseline_of(name) in logs]
    figure, panels = _panels(len(names), sharex=over == "steps", sharey=True)
    lowest, highest = math.inf, -math.inf
    for axes, name in zip(panels, names):
        baseline = same_seeds(logs[study.baseline_of(name)], logs[name])
        for runs, colour in ((baseline, GREY), (logs[name], BLUE)):
            curve = loss_curve(runs, study.clock, over)
            first = round(len(curve[0]) * (1 - SHOWN_SHARE))
            lowest, highest = min(lowest, curve[1].min()), max(highest, curve[1][:, first:].max())
            _band(axes, curve, colour)
        _finish(axes, study.label_of(name))
    margin = 0.04 * (highest - lowest)
    for axes in panels:
        axes.set_ylim(lowest - margin, highest + margin)
    figure.supxlabel(over, fontsize=9)
    figure.supylabel("held-out loss (nats/token)", fontsize=9)
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


def draw_differences(rows: Sequence[Row]) -> Any:
    """Means and intervals of the paired differences, at equal steps and at equal seconds."""
    compared = [row for row in rows if row.variant != row.baseline]
    if not compared:
        return None
    figure, panels = _pyplot().subplots(1, 2, sharey=True, figsize=(8.5, 0.32 * len(compared) + 1.3), layout="constrained")  # fmt: skip
    kinds = {"equal steps": [row.by_steps for row in compared], "equal seconds": [row.by_seconds for row in compared]}
    for axes, (title, differences) in zip(panels, kinds.items()):
        _intervals(axes, differences)
        axes.axvline(0, color=GREY, linewidth=1)
        _finish(axes, f"at {title}")
        axes.set_xlabel("loss minus baseline's (nats/token); left is better", fontsize=8)
    panels[0].set_yticks(range(len(compared)), [row.label for row in compared], fontsize=8)
    panels[0].invert_yaxis()
    return figure


def _intervals(axes: Any, differences: Sequence[Difference | None]) -> None:
    for place, one in enumerate(differences):
        if one is not None:
            clear = one.half_width is not None and abs(one.mean) > one.half_width
            axes.errorbar(one.mean, place, xerr=one.half_width, fmt="o", markersize=5, capsize=3,
                          color=BLUE, markerfacecolor=BLUE if clear else "white")  # fmt: skip


def draw_statistics(study: Study, logs: Logs) -> Any:
    """Dots by variant, one panel a statistic."""
    figure, panels = _pyplot().subplots(1, len(STATISTICS), sharey=True, figsize=(1.9 * len(STATISTICS) + 1, 0.3 * len(logs) + 1.2),
                                        layout="constrained")  # fmt: skip
    for axes, statistic in zip(panels, STATISTICS):
        for place, runs in enumerate(logs.values()):
            values = [_shown_value(run, statistic, study.steps) for run in runs]
            axes.plot(values, [place] * len(values), "o", markersize=3.5, color=ORANGE, alpha=0.8)
            axes.plot([float(np.mean(values))], [place], "|", markersize=11, color="black")
        _finish(axes, statistic)
    panels[0].set_yticks(range(len(logs)), [study.label_of(name) for name in logs], fontsize=8)
    panels[0].invert_yaxis()
    return figure


def _shown_value(run: RunLog, statistic: str, steps: int) -> float:
    series = run.metrics[statistic]
    at = min(series, key=lambda step: abs(step - steps / 2)) if statistic == "saturation" else max(series)
    return series[at]


def draw_experts(study: Study, logs: Logs) -> Any:
    """Heat maps of the load by layer and expert."""
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
