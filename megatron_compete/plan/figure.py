"""One figure of a plan: what competition costs against A_max, how long steps take, and who holds how much memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_compete.common.errors import CompeteError
from megatron_compete.common.files import StagedFiles
from megatron_compete.schedule.table import POLICIES, Policy

if TYPE_CHECKING:
    from megatron_compete.plan.memory import StageMemory
    from megatron_compete.plan.overhead import Overhead, PolicyOutcome

COLOURS = {"balanced": "tab:blue", "shifted": "tab:orange", "bernoulli": "tab:green"}
GIB = 2**30
MEMORY = (
    ("weights", "#4c72b0"),
    ("gradients", "#8da0cb"),
    ("optimizer", "#c6d4e8"),
    ("activations", "#dd8452"),
    ("output", "#f2b48c"),
    ("competition", "#55a868"),
    ("scoring", "#a8d5b5"),
)
"""Kinds of `StageMemory` in the order in which they are stacked."""


def check_figure_path(path: Path) -> None:
    """Refuse a figure that could not be written, before anything is computed.

    Raises:
        CompeteError: matplotlib is missing, or its formats do not include the file's suffix.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        raise CompeteError(f"--figure {path} needs matplotlib: pip install megatron-compete[report]") from None
    formats = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise CompeteError(f"--figure {path}: the suffix is none of {', '.join(sorted(formats))}")
    if path.is_dir():
        raise CompeteError(f"--figure {path} is a folder: give a file")


def draw_plan(
    overhead: "Overhead", memory: Sequence["StageMemory"], memory_bytes: float, path: Path, title: str = ""
) -> None:
    """Write the figure to `path` (the suffix names the format); it appears when it is complete.

    Args:
        memory: of each pipeline stage.
        memory_bytes: what a GPU has.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = 2 if overhead.outcomes else 1
    figure, axes = pyplot.subplots(
        rows, rows, figsize=(11, 7.5) if overhead.outcomes else (7, 4.5), layout="constrained", squeeze=False
    )
    figure.suptitle(title)
    _draw_memory(axes[-1, -1], memory, memory_bytes)
    if overhead.outcomes:
        _draw_overhead(axes[0, 0], overhead)
        _draw_competing(axes[0, 1], overhead)
        _draw_distribution(axes[1, 0], overhead)
    for panel in axes.flat:
        panel.spines[["top", "right"]].set_visible(False)
    try:
        with StagedFiles() as staged:
            figure.savefig(staged.path(str(path)), dpi=130, format=path.suffix[1:])
            staged.commit()
    except OSError as error:
        raise CompeteError(f"--figure {path} cannot be written: {error.strerror}") from error
    finally:
        pyplot.close(figure)


def _draw_overhead(axes: Any, overhead: "Overhead") -> None:
    """With the legend of both panels over A_max."""
    _draw_against_limit(axes, overhead, lambda outcome: outcome.overhead_percent)
    axes.set(title=f"overhead over all steps, at rate {overhead.rate:g}", ylabel="above a normal step (%)")
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    axes.legend(frameon=False, fontsize=8)


def _draw_competing(axes: Any, overhead: "Overhead") -> None:
    _draw_against_limit(axes, overhead, lambda outcome: outcome.competing_mean_seconds)
    axes.axhline(overhead.normal_seconds, color="black", linewidth=1, linestyle="--")
    axes.annotate(
        "normal step", (1, overhead.normal_seconds), xycoords=("axes fraction", "data"),
        xytext=(-3, 3), textcoords="offset points", ha="right", va="bottom", fontsize=8,
    )  # fmt: skip
    axes.set(title="mean step at which a layer competes", ylabel="seconds")
    axes.margins(y=0.15)


def _draw_against_limit(axes: Any, overhead: "Overhead", value: Any) -> None:
    for policy in POLICIES:
        points = [
            (item.max_active, value(item))
            for item in overhead.outcomes
            if item.policy == policy and not item.infeasible
        ]
        if points:
            label = policy if len(points) > 1 else f"{policy} (no limit)"
            axes.plot(*zip(*points), ".-", color=COLOURS[policy], markersize=4 if len(points) > 1 else 10, label=label)
    limits = [item.max_active for item in overhead.outcomes]
    feasible = [item.max_active for item in overhead.outcomes if not item.infeasible]
    if feasible and min(feasible) > 1:
        axes.axvspan(1, min(feasible), color="0.93", zorder=0, label="below rate × layers")
    axes.axvline(overhead.max_active, color="0.5", linewidth=1, linestyle=":", label=f"recipe: {overhead.max_active}")
    axes.set(
        xlabel="A_max: most layers that compete at one step", xlim=(1 if max(limits) > 1 else 0.5, 1.06 * max(limits))
    )
    if max(limits) >= 16:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
    else:
        axes.xaxis.get_major_locator().set_params(integer=True)


def outcomes_at(overhead: "Overhead", max_active: int) -> list["PolicyOutcome"]:
    """Each policy at this A_max where it can be; bernoulli, which keeps no limit, always as it is."""
    limits: dict[Policy, int] = {"balanced": max_active, "shifted": max_active}
    most = max(item.max_active for item in overhead.outcomes)
    found = (overhead.of(policy, limits.get(policy, most)) for policy in POLICIES)
    return [outcome for outcome in found if not outcome.infeasible]


def _draw_distribution(axes: Any, overhead: "Overhead") -> None:
    for outcome in outcomes_at(overhead, overhead.max_active):
        seconds_N = np.sort(outcome.seconds)
        shares_N = np.arange(1, len(seconds_N) + 1) / len(seconds_N)
        limit = "no limit" if outcome.policy == "bernoulli" else f"A_max {outcome.max_active}"
        label = f"{outcome.policy} ({limit}), mean {outcome.mean_seconds:.3g} s"
        axes.step(seconds_N, shares_N, where="post", color=COLOURS[outcome.policy], label=label)
    axes.axvline(overhead.normal_seconds, color="black", linewidth=1, linestyle="--", label="normal step")
    axes.set(
        title=f"step times over {overhead.steps:,} simulated steps", xlabel="seconds of a step",
        ylabel="share of steps that take no longer", ylim=(0, 1.02),
    )  # fmt: skip
    axes.legend(frameon=False, fontsize=8)


def _draw_memory(axes: Any, memory: Sequence["StageMemory"], memory_bytes: float) -> None:
    stages = np.arange(len(memory))
    bottom = np.zeros(len(memory))
    for kind, colour in MEMORY:
        height = np.array([getattr(stage, kind) for stage in memory]) / GIB
        if height.any():
            axes.bar(stages, height, bottom=bottom, color=colour, label=kind, width=0.85)
        bottom += height
    axes.axhline(memory_bytes / GIB, color="black", linewidth=1, linestyle="--")
    axes.annotate(
        f"GPU: {memory_bytes / GIB:.0f} GiB", (1, memory_bytes / GIB), xycoords=("axes fraction", "data"),
        xytext=(-3, 3), textcoords="offset points", ha="right", va="bottom", fontsize=8,
    )  # fmt: skip
    axes.set(title="memory of a rank, at the fullest step", xlabel="pipeline stage", ylabel="GiB")
    axes.set_ylim(0, 1.12 * max(memory_bytes / GIB, bottom.max()))
    axes.set_xlim(-0.6, max(len(memory), 4) - 0.4)  # few stages as narrow bars
    axes.set_xticks(stages[:: -(-len(stages) // 16)])
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
