"""`megatron-compete plan`: price a recipe for any number of GPUs, on a machine that has none."""

import contextlib
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_compete.common.command_line import Command, option
from megatron_compete.common.errors import CompeteError
from megatron_compete.launch.recipe import Recipe, read_recipe

if TYPE_CHECKING:
    from megatron_compete.plan.budget import Fit
    from megatron_compete.plan.job_plan import JobPlan
    from megatron_compete.plan.overhead import Overhead

SHORT_FORMS = {
    "tp": "tensor-model-parallel-size",
    "pp": "pipeline-model-parallel-size",
    "vp": "num-virtual-stages-per-pipeline-rank",
    "ep": "expert-model-parallel-size",
    "cp": "context-parallel-size",
    "etp": "expert-tensor-parallel-size",
}

SHORT_FOR = {short: f"short for --{name}" for short, name in SHORT_FORMS.items()}

OTHER_VIRTUAL_STAGES = ("num-layers-per-virtual-pipeline-stage", "pipeline-model-parallel-layout")
"""Megatron's other ways to say how many virtual stages there are; it takes one of the three."""


@dataclass(frozen=True)
class PlanOptions:
    """The verb's own flags."""

    recipe: Path = option(metavar="RECIPE", help="YAML file, see examples/")
    gpus: int | None = option(None, help="GPUs of the job (default: the recipe's)")
    gpu: str = option("h100", metavar="NAME", help="kind of GPU")
    tp: int | None = option(None, help=SHORT_FOR["tp"])
    pp: int | None = option(None, help=SHORT_FOR["pp"])
    vp: int | None = option(None, help=SHORT_FOR["vp"])
    ep: int | None = option(None, help=SHORT_FOR["ep"])
    cp: int | None = option(None, help=SHORT_FOR["cp"])
    etp: int | None = option(None, help=SHORT_FOR["etp"])
    json: bool = option(False, help="print everything as one JSON document instead of tables")
    features: bool = option(
        False, help="show what the recipe asks for and what is known of it with competition, and no plan"
    )
    budget: str | None = option(
        None,
        metavar="PERCENT",
        help="also list settings of competition whose mean step costs this much more at most, e.g. 5%%",
    )
    figure: Path | None = option(None, metavar="FILE", help="also draw it, e.g. plan.png")
    overrides: tuple[str, ...] = option((), hidden=True)


def run_plan(options: PlanOptions) -> None:
    """Plan a job and print it.

    Raises:
        CompeteError: arguments that cannot be used, or a job that Megatron would refuse.
    """
    if options.gpus is not None and options.gpus < 1:
        raise CompeteError(f"--gpus {options.gpus} is no number of GPUs: give 1 or more")
    recipe = read_recipe(options.recipe)
    override_layout(recipe, {short: getattr(options, short) for short in SHORT_FORMS})
    recipe.override(options.overrides)
    if options.features:
        if options.budget is not None:
            raise CompeteError(
                f"--budget {options.budget} needs a plan, and --features makes none: leave one of the two out"
            )
        _show_features(recipe, options)
        return
    with _only_the_plan_on_stdout():
        if options.figure is not None:
            from megatron_compete.plan.figure import check_figure_path

            check_figure_path(options.figure)
        budget = None if options.budget is None else _parsed(options.budget)
        plan, overhead = _simulate(recipe, options.gpus, options.gpu)
        within = None if budget is None else _within(plan, budget)
        if options.figure is not None:
            _draw(plan, overhead, options.recipe, options.figure)
    _print(plan, overhead, str(options.recipe), within, as_json=options.json)


def _show_features(recipe: Recipe, options: PlanOptions) -> None:
    with _only_the_plan_on_stdout():
        from megatron_compete.plan.features import examine, features_document, print_features

        found = examine(recipe, options.gpus)
    if options.json:
        print(json.dumps(features_document(found, str(options.recipe)), indent=1))
    else:
        print_features(found, str(options.recipe), sys.stdout)
    sys.stdout.flush()
    if found.refusal is not None:
        raise found.refusal


def override_layout(recipe: Recipe, sizes: dict[str, int | None]) -> None:
    """Put sizes by their short names into a recipe; None leaves its own."""
    for short, size in sizes.items():
        if size is not None:
            recipe.arguments[SHORT_FORMS[short]] = size
    if sizes.get("vp") is not None:
        for name in OTHER_VIRTUAL_STAGES:
            recipe.arguments.pop(name, None)


def _simulate(recipe: Recipe, gpus: int | None, gpu: str) -> tuple["JobPlan", "Overhead"]:
    from rich.console import Console

    from megatron_compete.plan.hardware import preset

    hardware = preset(gpu)
    with Console(stderr=True).status("importing Megatron") as status:
        from megatron_compete.plan.job import read_job
        from megatron_compete.plan.job_plan import plan_job
        from megatron_compete.plan.overhead import simulate_policies
        from megatron_compete.plan.stage_program import PipelineShape

        status.update("checking and counting")
        job = read_job(recipe, gpus)
        plan = plan_job(job, hardware)
        shape = PipelineShape.of(job.transformer, job.microbatches)
        return plan, simulate_policies(job.schedule, plan.times, shape, progress=status.update)


def _draw(plan: "JobPlan", overhead: "Overhead", recipe: Path, path: Path) -> None:
    from megatron_compete.plan.figure import draw_plan

    sizes = plan.job.sizes
    virtual = f" x VP {sizes.vp}" if sizes.vp > 1 else ""
    layout = f"TP {sizes.tp} x CP {sizes.cp} x PP {sizes.pp}{virtual} x DP {sizes.dp}"
    if not plan.job.is_dense:
        layout += f", EP {sizes.ep}"
    title = f"{recipe.stem} on {sizes.world:,} x {plan.hardware.name}: {layout}"
    draw_plan(overhead, plan.memory, plan.hardware.memory_bytes, path, title)


def _parsed(budget: str) -> float:
    from megatron_compete.plan.budget import parse_budget

    return parse_budget(budget)


def _within(plan: "JobPlan", budget: float) -> "tuple[Fit, ...]":
    from rich.console import Console

    from megatron_compete.plan.budget import fits

    with Console(stderr=True).status("looking for settings") as status:
        return fits(plan.job, plan.hardware, plan.times, budget, progress=status.update)


def _print(plan: "JobPlan", overhead: "Overhead", recipe: str, within: "tuple[Fit, ...] | None", as_json: bool) -> None:
    from megatron_compete.plan.document import plan_document
    from megatron_compete.plan.report import print_plan

    if as_json:
        print(json.dumps(plan_document(plan, overhead, recipe, within), indent=1, allow_nan=False))
    else:
        print_plan(plan, overhead, recipe, sys.stdout, within)


@contextlib.contextmanager
def _only_the_plan_on_stdout() -> Iterator[None]:
    """Megatron prints while it checks arguments, and torch warns that there is no GPU, which is no news here."""
    disabled = logging.root.manager.disable
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)


main = Command(
    name="plan",
    description="""Count a job's parameters, memory, traffic and flops, and simulate its steps, without a GPU.
    Whatever Megatron would refuse minutes into the job is an error here. Anything after the recipe overrides it by name,
    as with pretrain; the short forms below stand for Megatron's flags. Times are estimates; the report says what of.""",
    example="--recipe examples/moe_30b_a3b.yaml --gpus 64 --gpu h200 --pp 4",
    options=PlanOptions,
    run=run_plan,
    takes_overrides=True,
)
