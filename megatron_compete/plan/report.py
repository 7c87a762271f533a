"""A plan for a terminal: tables with units, grouped by topic, what they take for granted at the end."""

import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TextIO

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from megatron_compete.plan.budget import Fit
from megatron_compete.plan.document import model_notes, step_document
from megatron_compete.plan.job_plan import JobPlan
from megatron_compete.plan.memory import StageMemory, not_counted
from megatron_compete.plan.overhead import Overhead, PolicyOutcome
from megatron_compete.plan.traffic import PURPOSES
from megatron_compete.plan.vision import Vision
from megatron_compete.schedule.table import POLICIES, Policy
from megatron_compete.vlm.layer_names import PART_NAMES

WIDTH = 118
"""Columns that the tables need; a narrower terminal breaks their lines, a pipe never does."""

MOST_STAGES = 8
"""Pipeline stages shown one by one; of more, the ends and the fullest."""

GIB = 2**30


def print_plan(
    plan: JobPlan, overhead: Overhead, recipe: str, file: TextIO, within_budget: Sequence[Fit] | None = None
) -> None:
    """Write the tables of a plan to `file`."""
    console = Console(file=file, highlight=False)
    console.width = max(console.width, WIDTH)
    with console.capture() as capture:
        for title, table in (
            (f"{recipe} on {plan.job.sizes.world:,} x {plan.hardware.name}", _layout(plan)),
            ("Parameters", _parameters(plan)),
            ("Memory of a rank (GiB)", _memory(plan)),
            ("Network: what the busiest rank sends in a step (GB)", _traffic(plan)),
            ("FLOPs of a step, all ranks (TFLOP)", _flops(plan)),
            ("Step", _step(plan, overhead)),
            (_policies_title(overhead), _policies(overhead)),
            ("Settings within the budget, most competing tokens first", _within_budget(within_budget)),
        ):
            if table.row_count:
                console.print(Text(title, style="bold"), Padding(table, (0, 0, 0, 2), expand=False), "")
        reasons = [*_paragraphs(_without_schedule(overhead))]
        console.print(*reasons, *([""] if reasons else []), Text("Assumed, not measured", style="bold"), sep="\n")
        console.print(*_paragraphs(_assumptions(plan)), sep="\n")
    file.write("\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n")


def _paragraphs(lines: Iterable[str]) -> Iterator[Text]:
    """Lines broken at `WIDTH`."""
    for line in lines:
        yield Text(textwrap.fill(line, WIDTH, initial_indent="  - ", subsequent_indent="    "))


def _table(columns: Sequence[str] = (), names: int = 1) -> Table:
    """A table whose first columns are names and whose others are numbers; without columns' names two, unnamed."""
    style = box.SIMPLE_HEAD if columns else None
    table = Table(box=style, show_header=bool(columns), pad_edge=False, show_edge=False, header_style="")
    for position, column in enumerate(columns or ("", "")):
        is_name = position < names or not columns
        table.add_column(column, justify="left" if is_name else "right", no_wrap=not is_name)
    return table


def _layout(plan: JobPlan) -> Table:
    job, sizes, args = plan.job, plan.job.sizes, plan.job.args
    table = _table()
    virtual = f" x VP {sizes.vp}" if sizes.vp > 1 else ""
    layers = "layers" if job.is_dense else "dense layers"
    table.add_row(layers, f"TP {sizes.tp} x CP {sizes.cp} x PP {sizes.pp}{virtual} x DP {sizes.dp}")
    if not job.is_dense:
        table.add_row("experts", f"ETP {sizes.etp} x EP {sizes.ep} x PP {sizes.pp}{virtual} x EDP {sizes.edp}")
    if job.vision is not None:
        table.add_row("pictures", _pictures(job.vision))
    table.add_row(
        "batch",
        f"{args.global_batch_size:,} sequences of {args.seq_length:,} tokens: {job.microbatches:,} microbatches of "
        f"{args.micro_batch_size} a pipeline, {job.step_tokens / 1e6:.3g} M tokens a step",
    )
    return table


def _pictures(vision: Vision) -> str:
    config, tiles = vision.config, "1 tile" if vision.tiles == 1 else f"{vision.tiles} tiles"
    return (
        f"{tiles} a sequence of {config.img_h} x {config.img_w} pixels: {vision.sequence_length('vision'):,} tokens in the tower, "
        f"{config.image_embeddings:,} in the decoder; tower and projector are on stage 0"
    )


def _parameters(plan: JobPlan) -> Table:
    parameters = plan.parameters
    table = _table()
    active = "" if plan.job.is_dense else f", of which {_count(parameters.active)} active for a token"
    table.add_row("total", f"{_count(parameters.total)}{active}")
    by_size = sorted(parameters.by_kind.items(), key=lambda item: -item[1])
    table.add_row("by kind", ", ".join(f"{kind} {_count(number)}" for kind, number in by_size if number))
    on_rank = [parameters.on_rank(stage) for stage in range(plan.job.sizes.pp)]
    most, least = max(on_rank), min(on_rank)
    table.add_row("on a rank", _count(most) if most == least else f"{_count(least)} to {_count(most)} by stage")
    return table


def _memory(plan: JobPlan) -> Table:
    table = _table(("stage", "weights", "gradients", "optimizer", "activations", "logits", "normal\nstep", "compe-\ntition", "scoring", "fullest\nstep", "passes\nin flight"))  # fmt: skip
    for stage in _shown_stages(plan):
        values = [stage.weights, stage.gradients, stage.optimizer, stage.activations, stage.output]
        values += [stage.normal, stage.competition, stage.scoring, stage.competing]
        table.add_row(str(stage.stage), *(f"{value / GIB:.2f}" for value in values), str(sum(stage.in_flight_V)))
    return table


def _shown_stages(plan: JobPlan) -> Iterable[StageMemory]:
    if len(plan.memory) <= MOST_STAGES:
        return plan.memory
    shown = {0, 1, plan.fullest.stage, len(plan.memory) - 2, len(plan.memory) - 1}
    return [stage for stage in plan.memory if stage.stage in shown]


def _traffic(plan: JobPlan) -> Table:
    table = _table(("group", "what", "ranks", "within a node", "across nodes"), names=2)
    for kind in plan.traffic:
        within, across = kind.within / 1e9, kind.across / 1e9
        table.add_row(kind.purpose, PURPOSES[kind.purpose], f"{kind.group_size:,}", f"{within:.3f}", f"{across:.3f}")
    return table


def _flops(plan: JobPlan) -> Table:
    flops = plan.flops
    table = _table()
    table.add_row("normal", _tera(flops.normal))
    if len(flops.competing_of_part) == 1:
        table.add_row("each competing layer adds", _tera(flops.competing_layer))
    elif flops.competing_of_part:
        of_parts = ", ".join(f"{PART_NAMES[part]} {_tera(added)}" for part, added in flops.competing_of_part.items())
        table.add_row("each competing layer adds", of_parts)
    if flops.competing_of_part:
        table.add_row("with A_max competing layers", _tera(flops.competing))
        table.add_row("mean over steps", _tera(flops.mean))
    return table


def _step(plan: JobPlan, overhead: Overhead) -> Table:
    step = step_document(plan, overhead)
    seconds = _seconds(overhead.normal_seconds)
    table = _table()
    table.add_row("normal step", f"{seconds(step['normal_seconds'])}, MFU {step['normal_mfu_percent']:.1f} %")
    if overhead.policy is not None:
        table.add_row(
            "mean over steps",
            f"{seconds(step['mean_seconds'])}, MFU {step['mean_mfu_percent']:.1f} % (of the model's own flops), "
            f"{step['overhead_percent']:.2f} % above a normal step",
        )
        table.add_row(
            "",
            f"spread evenly over steps and stages it would be {step['even_overhead_percent']:.2f} %; "
            f"{step['added_flops_percent']:.2f} % more flops",
        )
        table.add_row("mean competing step", seconds(step["competing_mean_seconds"]))
    table.add_row("tokens", f"{step['tokens_per_second']:,.0f} a second")
    fullest = plan.fullest
    fits = "fits" if plan.fits else "DOES NOT FIT"
    table.add_row(
        "memory",
        f"{fits}: {fullest.competing / GIB:.1f} GiB on stage {fullest.stage} of {plan.memory_limit / GIB:.1f} GiB usable "
        f"({plan.hardware.memory_bytes / GIB:.1f} GiB)",
    )
    if plan.megatron_memory is not None:
        state, activations = (value / GIB for value in plan.megatron_memory)
        table.add_row(
            "", f"Megatron's own estimate: {state:.1f} GiB weights and optimizer, {activations:.1f} GiB activations"
        )
    return table


def _within_budget(within_budget: Sequence[Fit] | None) -> Table:
    table = _table(
        ("kind", "rate", "token\nfraction", "A_max,\nleft out", "competing\ntokens", "overhead\nof all steps")
    )
    for fit in within_budget or ():
        table.add_row(
            fit.kind,
            f"{fit.rate:g}",
            f"{fit.token_fraction:g}",
            str(fit.max_active_layers),
            f"{fit.competing_percent:.2g} %",
            f"{fit.overhead_percent:.2f} %",
        )
    if within_budget is not None and not within_budget:
        table.add_row("none", "", "", "", "", "")
    return table


def _policies_title(overhead: Overhead) -> str:
    return (
        f"Competition: {overhead.steps:,} simulated steps for each row, rate {overhead.rate:g}; "
        f"* is the recipe's ({overhead.policy}, A_max {overhead.max_active})"
    )


def _policies(overhead: Overhead) -> Table:
    seconds = _seconds(overhead.normal_seconds)
    table = _table(("policy", "A_max", "competing\nsteps", "step\nmean", "median", "p95", "max", "competing\nstep, mean", "overhead\nof all steps", "most layers\non a stage"))  # fmt: skip
    for policy in POLICIES:
        for outcome in _shown_outcomes(overhead, policy):
            own = (outcome.policy, outcome.max_active) == (overhead.policy, overhead.max_active)
            times = (outcome.mean_seconds, outcome.p50_seconds, outcome.p95_seconds, outcome.max_seconds)
            table.add_row(
                f"{outcome.policy}{' *' if own else ''}",
                str(outcome.max_active),
                f"{100 * outcome.competing_share:.1f} %",
                *map(seconds, times),
                seconds(outcome.competing_mean_seconds) if outcome.competing_share else "-",
                f"{outcome.overhead_percent:.2f} %",
                str(outcome.most_layers_on_a_stage),
            )
    return table


def _shown_outcomes(overhead: Overhead, policy: Policy) -> list[PolicyOutcome]:
    """Of a policy: the least A_max that can be, powers of two, the recipe's, and all layers."""
    outcomes = [outcome for outcome in overhead.outcomes if outcome.policy == policy]
    feasible = [outcome for outcome in outcomes if not outcome.infeasible]
    shown = {overhead.max_active, len(outcomes), *(2**power for power in range(len(outcomes).bit_length()))}
    shown |= {outcome.max_active for outcome in feasible[:1]}
    return [outcome for outcome in feasible if outcome.max_active in shown]


def _without_schedule(overhead: Overhead) -> Iterator[str]:
    """For which A_max a policy has no schedule, and why for the highest of them."""
    for policy in POLICIES:
        outcomes = [outcome for outcome in overhead.outcomes if outcome.policy == policy and outcome.infeasible]
        if outcomes:
            up_to = f"1 to {outcomes[-1].max_active}" if len(outcomes) > 1 else "1"
            yield f"no {policy} schedule at A_max {up_to}: {outcomes[-1].infeasible}"


def _assumptions(plan: JobPlan) -> Iterator[str]:
    hardware = plan.hardware
    peak = f"{hardware.bf16_flops / 1e12:.0f} TFLOP/s bf16"
    if hardware.fp8_flops:
        peak += f", {hardware.fp8_flops / 1e12:.0f} FP8"
    yield (
        f"{hardware.name}: {peak}, memory {hardware.memory_bandwidth / 1e12:.2f} TB/s, links "
        f"{hardware.link_bandwidth / 1e9:.0f} GB/s, network {hardware.network_bandwidth / 1e9:.0f} GB/s a GPU"
    )
    yield ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in hardware.assumptions().items())
    if plan.job.transformer_engine is not None:
        yield f"needs {plan.job.transformer_engine}"
    yield from model_notes(plan.job)
    yield f"memory leaves out: {'; '.join(not_counted(plan.job))}"


def _count(number: int) -> str:
    """Parameters in the unit that people say."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return str(number)


def _tera(flops: float) -> str:
    return f"{flops / 1e12:,.1f}"


def _seconds(typical: float) -> Callable[[float], str]:
    """How to write seconds so that all of a table are in one unit."""
    if typical < 1.0:
        return lambda seconds: f"{1e3 * seconds:.1f} ms"
    return lambda seconds: f"{seconds:.3f} s"
