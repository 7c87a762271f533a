"""What competition costs by plan, against the share of tokens that competes: a table and a figure for the shipped recipes.

    python -m benchmarks.planned_overhead --figure docs/results/overhead.png

A share of tokens can compete as all tokens at some steps (fraction 1) or as a sample at every step (rate 1). Beside both
stands what the same work would cost were it spread evenly over steps and stages, and the added FLOPs.
"""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron_compete.config import CompeteConfig
from megatron_compete.launch.recipe import read_recipe
from megatron_compete.plan.flops import step_flops
from megatron_compete.plan.hardware import preset
from megatron_compete.plan.job import read_job
from megatron_compete.plan.job_plan import JobPlan, plan_job
from megatron_compete.plan.overhead import mean_step, simulate_policies
from megatron_compete.plan.stage_program import PipelineShape
from megatron_compete.plan.times import added_by_competition
from megatron_compete.schedule import CompetitionSchedule
from megatron_compete.training.presets import preset_defaults

EXAMPLES = Path(__file__).parent.parent / "examples"
RECIPES = (
    "competesmoe_154m", "competesmoe_679m", "moe_30b_a3b", "hybrid_30b_a3b", "moe_80b_a3b", "moe_235b_a22b",
    "moe_671b_a37b",
)  # fmt: skip
SHARES = (0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1)
"""Of all tokens and layers, those that compete."""
EQUAL = 0.04
"""The share at which the table compares."""

Kind = Literal["utility", "response"]


@dataclass(frozen=True)
class Overhead:
    """In percent of a step without competition."""

    simulated: float
    """Of the mean step."""
    even: float
    """Of the same work spread evenly over steps and stages."""
    flops: float
    """FLOPs that are added, of a normal step's."""


def overhead(plan: JobPlan, config: CompeteConfig) -> Overhead:
    """Of these settings in this job."""
    schedule = CompetitionSchedule.of(config, plan.job.stage_chunks)
    job = dataclasses.replace(plan.job, compete=config, schedule=schedule)
    times = added_by_competition(plan.times, job, plan.hardware)
    step = mean_step(schedule, times, PipelineShape.of(job.transformer, job.microbatches), most_steps=1000)
    even, flops = times.evenly(schedule.rate) / step.normal_seconds, step_flops(job)
    return Overhead(step.overhead_percent, 100 * even, 100 * (flops.mean / flops.normal - 1))


def by_steps(share: float, kind: Kind = "utility") -> CompeteConfig:
    """All tokens of a layer, at some steps."""
    return CompeteConfig(kind=kind, rate=share)


def by_sample(share: float, kind: Kind = "utility") -> CompeteConfig:
    """A sample of the tokens, at every step."""
    return CompeteConfig(kind=kind, rate=1.0, token_fraction=share)


def recommended() -> CompeteConfig:
    """Competition as `--compete-preset recommended` sets it."""
    return CompeteConfig.from_arguments(argparse.Namespace(**preset_defaults("recommended")))


LINES: dict[str, tuple[Callable[[float], CompeteConfig], str, str]] = {
    "utility, a sample at every step": (by_sample, "#0072B2", "-o"),
    "utility, all tokens at some steps": (by_steps, "#D55E00", "-s"),
    "response, a sample at every step": (lambda share: by_sample(share, "response"), "#56B4E9", "-^"),
    "response, all tokens at some steps": (lambda share: by_steps(share, "response"), "#E69F00", "-v"),
}
"""Settings for a share, colour (Okabe and Ito's) and style."""


def planned(name: str, gpu: str) -> JobPlan:
    """The plan of a shipped recipe."""
    with contextlib.redirect_stdout(sys.stderr):
        return plan_job(read_job(read_recipe(EXAMPLES / f"{name}.yaml")), preset(gpu))


def row(name: str, plan: JobPlan) -> str:
    """Of the table: the job, and its overhead at an equal share of 4% and as recommended."""
    steps, sample, own = (overhead(plan, settings) for settings in (by_steps(EQUAL), by_sample(EQUAL), recommended()))
    sizes, parameters = plan.job.sizes, plan.parameters
    shape = PipelineShape.of(plan.job.transformer, plan.job.microbatches)
    normal = simulate_policies(None, plan.times, shape).normal_seconds
    cells = (
        f"`{name}`", f"{sizes.world:,} x {plan.hardware.name.upper()}",
        f"{parameters.total / 1e9:.3g} B, {parameters.active / 1e9:.3g} B",
        f"{sizes.tp}, {sizes.pp}, {sizes.vp}, {sizes.ep}",
        f"{1e3 * normal:,.0f} ms, {100 * plan.utilization(plan.flops.normal, normal):.1f}%",
        f"{plan.fullest.competing / 2**30:.1f} GiB", f"{sample.flops:.1f}%", f"{sample.even:.1f}%",
        f"{steps.simulated:.1f}% ({steps.simulated / steps.even:.2f}x)",
        f"{sample.simulated:.1f}% ({sample.simulated / sample.even:.2f}x)", f"{own.simulated:.1f}%",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def draw(plans: dict[str, JobPlan], path: Path) -> None:
    """One panel a recipe."""
    import matplotlib.pyplot as plt

    columns = 4
    figure, axes = plt.subplots(-(-len(plans) // columns), columns, figsize=(13, 6.4), sharex=True, squeeze=False)
    for panel, (name, plan) in zip(axes.flat, plans.items(), strict=False):
        points = {
            label: [overhead(plan, settings(share)) for share in SHARES] for label, (settings, _, _) in LINES.items()
        }
        shares = [100 * share for share in SHARES]
        for label, (_, colour, style) in LINES.items():
            panel.plot(shares, [point.simulated for point in points[label]], style, color=colour, label=label)
        first = points[next(iter(LINES))]
        panel.plot(shares, [point.even for point in first], ":", color="black", label="utility, spread evenly")
        panel.plot(shares, [point.flops for point in first], "--", color="0.6", label="FLOPs added")
        panel.axhline(5, color="0.85", linewidth=1, zorder=0)
        panel.set(title=name, xscale="log", yscale="log")
        panel.set_xticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
        panel.set_yticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
        panel.minorticks_off()
    for panel in list(axes.flat)[len(plans) :]:
        panel.axis("off")
    for panel in axes[:, 0]:
        panel.set_ylabel("overhead of the mean step (%)")
    for panel in axes[-1]:
        panel.set_xlabel("tokens that compete (%)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    axes[-1, -1].legend(handles, labels, loc="center", frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Print the table, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", default="h100")
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    plans = {name: planned(name, options.gpu) for name in RECIPES}
    print(
        "| recipe | GPUs | parameters, active | TP, PP, VP, EP | normal step, MFU | fullest GPU | FLOPs added | spread evenly "
        "| by steps | by sample | `recommended` |"
    )
    print(f"|{'---|' * 11}")
    for name, plan in plans.items():
        print(row(name, plan), flush=True)
    if options.figure:
        draw(plans, options.figure)


if __name__ == "__main__":
    main()
