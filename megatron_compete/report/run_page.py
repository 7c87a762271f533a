"""The page of one run, or of several over each other: what was logged, in the order in which one asks for it."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from megatron_compete.cluster.status_report import duration
from megatron_compete.report.charts import Mark, heat_map, lines, steps_or_bars
from megatron_compete.report.event_files import Curve
from megatron_compete.report.layers import by_layer, dead_since, layer_map
from megatron_compete.report.page import Page, Section, Table
from megatron_compete.report.run import Run
from megatron_compete.report.run_events import Event, events_of, step_times

if TYPE_CHECKING:
    from bokeh.models import LayoutDOM

CELLS, POINTS = 300_000, 100_000
"""Of all heat maps, and of all curves of a page together: so a page stays below 5 MB."""
SHOWN = ("lm loss", "lm loss validation", "learning-rate", "grad-norm", "iteration-time", "throughput", "batch-size")
COMPETITION = (
    ("competition/agreement", "share of the winners that the router would have chosen"),
    ("competition/distillation-loss", "distillation of the router, before its weight"),
    ("competition/diversity-loss", "mean cosine between the outputs of a token's winners"),
    ("competition/response-balance-loss", "entropy balance of the responses, before its weight"),
)
LOADS = (
    ("moe/load-max", "tokens of the busiest expert, relative to the mean"),
    ("moe/load-min", "tokens of the idlest expert, relative to the mean"),
    ("moe/router-entropy", "entropy of the router, nats per token"),
    ("moe/expert-change-rate", "top-K experts of fixed tokens that changed"),
)
DEAD = "moe/dead-experts"
LONG = 300
"""Characters of a setting that are shown."""


@dataclass
class Sheet:
    """What the sections share."""

    runs: Sequence[Run]
    peak_tflops: float | None = None
    """What a GPU can at most, for MFU."""
    x_range: Any = None
    """Of the charts over steps, which move together."""

    def __post_init__(self) -> None:
        self.missing: list[str] = []
        self.shown: set[str] = set()
        self.single = len(self.runs) == 1
        self.events = {run.name: events_of(run) for run in self.runs}
        self.maps = {run.name: by_layer(run) for run in self.runs}
        shown = [name for name, _ in (*COMPETITION, *LOADS)] + [DEAD]
        rows = sum(len(layers) for maps in self.maps.values() for name, layers in maps.items() if name in shown or name.endswith("_loss"))  # fmt: skip
        self.columns = max(16, min(256, CELLS // max(1, rows)))
        self.limit = max(200, min(2000, POINTS // (20 * len(self.runs))))

    def curves(self, tag: str, read: Callable[[Run], Curve | None] | None = None) -> dict[str, Curve]:
        """A scalar of the runs that have it."""
        self.shown.add(tag)
        found = {run.name: read(run) if read else run.curve(tag) for run in self.runs}
        return {name: curve for name, curve in found.items() if curve is not None}

    def say_missing(self, what: str, curves: Mapping[str, Any], why: str = "") -> None:
        """Note the runs that lack something."""
        lacking = [run.name for run in self.runs if run.name not in curves]
        if lacking:
            whose = "" if self.single else f" of {', '.join(lacking)}"
            self.missing.append(f"{what}{whose}{f': {why}' if why else ''}")

    def chart(self, curves: Mapping[str, Curve], y_label: str, **more: Any) -> "LayoutDOM":
        """Curves over the steps, with the events of a single run."""
        series = {name: (curve.steps, curve.values) for name, curve in curves.items()}
        if self.single and len(series) == 1:
            series = {y_label: next(iter(series.values()))}
        chart = lines(series, x_label="step", y_label=y_label, marks=self.marks(), x_range=self.x_range, limit=self.limit, **more)  # fmt: skip
        self.x_range = self.x_range or chart.x_range
        return chart

    def marks(self) -> list[Mark]:
        """Of a single run; those of several would hide the curves, and are in the last section."""
        if not self.single:
            return []
        return [Mark(event.step, event.text, event.kind) for event in self.events[self.runs[0].name] if event.step is not None]  # fmt: skip


def run_page(runs: Sequence[Run], peak_tflops: float | None = None, title: str = "") -> Page:
    """The page of runs.

    Args:
        peak_tflops: TFLOP/s that a GPU can at most, in the format that is trained in.
    """
    sheet = Sheet(runs, peak_tflops)
    made = [
        part(sheet)
        for part in (loss_section, speed_section, optimiser_section, competition_section, load_section, other_losses_section,
                     life_section, settings_section, rest_section)
    ]  # fmt: skip
    for run in runs:
        if run.events is None:
            sheet.missing.insert(0, f"TensorBoard's scalars of {run.name}: it has no event files, train with --tensorboard-dir")  # fmt: skip
        for file, note in (run.events.notes if run.events else {}).items():
            sheet.missing.append(f"{run.name}: {file} {note}")
    sections = [section for section in made if section is not None]
    if sheet.missing:
        text = "What could be here and is not, with the reason where it is known."
        missing = Section("What is missing", text, [Table(["what"], [[what] for what in sheet.missing])])
        sections.insert(1, missing)
    return Page(title or ", ".join(run.name for run in runs), summary_of(runs), sections)


def summary_of(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """The facts on top."""
    if len(runs) > 1:
        return [(run.name, _in_short(summary_of([run]))) for run in runs]
    (run,) = runs
    facts: list[tuple[str, str | None]] = []
    status, loss = run.status, run.curve("lm loss") or run.logged("loss")
    if status is not None:
        facts += [("state", status.state + (f": {status.reason}" if status.reason else "")), ("job", status.job_id)]
    step = int(loss.steps[-1]) if loss is not None else status.iteration if status is not None else None
    last = run.number("train-iters") or (status.train_iters if status is not None else None)
    if step is not None:
        facts.append(("step", f"{step:,}" + (f" of {last:,.0f}" if last else "")))
    if loss is not None:
        facts.append(("loss", _value(loss.values[-1])))
        broken = np.flatnonzero(~np.isfinite(loss.values))
        if len(broken):
            facts.append(("loss not finite", f"at {len(broken):,} logged steps, first {loss.steps[broken[0]]:,}"))
    held_out = run.curve("lm loss validation")
    if held_out is not None:
        facts.append(("held-out loss", _value(held_out.values[-1])))
    if status is not None:
        speed, tokens = status.tokens_per_second, status.consumed_tokens
        facts += [
            ("tokens/s", None if speed is None else f"{speed:,.0f}"),
            ("tokens", None if tokens is None else f"{tokens:,}"),
            ("restarts", f"{status.restarts}" + (f", {len(status.failures)} after a failure" if status.failures else "")),
            ("steps trained again", f"{status.repeated_steps:,}" if status.repeated_steps else None),
            ("time used", duration(status.used_seconds) if status.used_seconds else None),
            ("to the end", duration(status.training_left_seconds) if status.training_left_seconds else None),
        ]  # fmt: skip
    facts += [("last checkpoint", f"{run.checkpoints[-1][0]:,}" if run.checkpoints else None)]
    facts += [("page of", time.strftime("%Y-%m-%d %H:%M:%S %Z"))]
    return [(name, value) for name, value in facts if value]


def loss_section(sheet: Sheet) -> Section:
    """Training and held-out loss."""
    loss = sheet.curves("lm loss", lambda run: run.curve("lm loss") or run.logged("loss"))
    held_out = sheet.curves("lm loss validation")
    sheet.say_missing("The loss", loss, "no step was logged yet")
    sheet.say_missing("The held-out loss", held_out, "none was logged; --eval-interval and --eval-iters say when it is")
    figures = []
    if loss:
        figures.append(sheet.chart(loss, "loss, nats per token", title="Training loss"))
    if held_out:
        figures.append(sheet.chart(held_out, "held-out loss", title="Held-out loss", points=True))
    rows = []
    for run in sheet.runs:
        here, out = loss.get(run.name), held_out.get(run.name)
        if here is not None or out is not None:
            rows.append([run.name, *_last(here), *_last(out), *_least(out), _broken(here)])
    header = ["run", "step", "last loss", "step", "last held-out", "step", "least held-out", "steps not finite"]
    return Section("Loss", tables=[Table(header, rows)] if rows else [], figures=figures)


def speed_section(sheet: Sheet) -> Section | None:
    """Tokens a second, seconds a step, and the share of the hardware's peak."""
    seconds = sheet.curves("iteration-time", lambda run: run.logged("seconds_per_step") or run.curve("iteration-time"))
    tokens = sheet.curves("tokens per second", tokens_per_second)
    flops = sheet.curves("throughput")
    sheet.say_missing(
        "Time of a step", seconds, "Megatron logs it with --log-timers-to-tensorboard, a job in its run folder"
    )
    sheet.say_missing("TFLOP/s", flops, "Megatron logs them with --log-throughput and --log-timers-to-tensorboard")
    if flops and sheet.peak_tflops is None:
        sheet.missing.append("MFU: --peak-tflops says what a GPU can at most")
    figures = []
    if tokens:
        figures.append(sheet.chart(tokens, "tokens per second", title="Throughput"))
    if seconds:
        figures.append(sheet.chart(seconds, "seconds per step", title="Time of a step"))
    if flops and sheet.peak_tflops is not None:
        shares = {
            name: Curve(one.steps, one.values / sheet.peak_tflops * 100, one.times) for name, one in flops.items()
        }
        figures.append(sheet.chart(shares, "MFU, %", title=f"MFU: share of {sheet.peak_tflops:g} TFLOP/s"))
    elif flops:
        figures.append(sheet.chart(flops, "TFLOP/s per GPU", title="Operations per second"))
    return Section("Speed", figures=figures) if figures else None


def tokens_per_second(run: Run) -> Curve | None:
    """From a step's time, its sequences and their length."""
    seconds, length, batch = run.logged("seconds_per_step"), run.number("seq-length"), run.curve("batch-size")
    consumed = run.logged("consumed_tokens")
    if seconds is not None and consumed is not None and len(consumed.steps) == len(seconds.steps) > 1:
        of_step = np.diff(consumed.values) / np.diff(consumed.steps)
        of_step = np.append(of_step[:1], of_step)
    else:
        seconds = run.curve("iteration-time")
        if seconds is None or length is None:
            return None
        size = run.number("global-batch-size")
        if batch is None and size is None:
            return None
        of_step = length * (np.interp(seconds.steps, batch.steps, batch.values) if batch is not None else np.full(len(seconds.steps), size))  # fmt: skip
    with np.errstate(divide="ignore", invalid="ignore"):
        return Curve(seconds.steps, np.where(seconds.values > 0, of_step / seconds.values, np.nan), seconds.times)


def optimiser_section(sheet: Sheet) -> Section | None:
    """Learning rate, gradient norm, batch."""
    figures = []
    for tag, label, log in (
        ("learning-rate", "learning rate", False), ("grad-norm", "gradient norm", True), ("params-norm", "norm of the parameters", False),
        ("loss-scale", "loss scale", True), ("batch-size", "sequences per step", False), ("world-size", "ranks", False),
    ):  # fmt: skip
        curves = sheet.curves(tag)
        if tag in ("learning-rate", "grad-norm"):
            sheet.say_missing(label.capitalize(), curves, "not logged")
        changes = tag not in ("batch-size", "world-size", "loss-scale") or any(np.ptp(one.values) > 0 for one in curves.values())  # fmt: skip
        if curves and changes:
            figures.append(sheet.chart(curves, label, log=log, title=label.capitalize()))
    return Section("Optimiser", figures=figures) if figures else None


def competition_section(sheet: Sheet) -> Section | None:
    """Who competed, how often the router agreed, and the losses."""
    active = sheet.curves("competition/active-layers")
    if not active:
        kinds = {run.setting("router") or "topk" for run in sheet.runs}
        names = ", ".join(sorted(kinds))
        if any(run.events is not None for run in sheet.runs):
            return Section("Competition", f"No layer's competition was logged (router: {names}).", open=False)
        return None
    figures: list[LayoutDOM] = []
    limits = {f"A_max of {name}" if not sheet.single else "A_max": value for name, value in _limits(sheet.runs).items()}
    series = {name: (curve.steps, curve.values) for name, curve in active.items()}
    figures.append(steps_or_bars(series, x_label="step", y_label="competing layers", title="Competing layers", limits=limits, marks=sheet.marks(), x_range=sheet.x_range))  # fmt: skip
    if not limits:
        sheet.missing.append("A_max: neither recipe nor arguments say --compete-max-active-layers")
    tokens = sheet.curves("competition/tokens")
    if tokens:
        figures.append(sheet.chart(tokens, "competing tokens", title="Tokens that competed in a step, over all layers"))
    for tag, meaning in COMPETITION:
        figures += _model_and_layers(sheet, tag, meaning)
    top = sheet.curves("competition/agreement-top1")
    if top:
        figures.append(sheet.chart(top, "share of tokens", title="The best expert is the router's favourite"))
    if not any(name.startswith("competition/") for maps in sheet.maps.values() for name in maps):
        sheet.missing.append("Competition by layer: train with --moe-per-layer-logging")
    rows = [[run.name, *_use(run)] for run in sheet.runs if run.name in active]
    table = Table(["run", "steps with competition", "most layers at once", "agreement at first", "agreement at the end"], rows)  # fmt: skip
    return Section("Competition", tables=[table], figures=figures)


def load_section(sheet: Sheet) -> Section | None:
    """Loads of experts, and who is dead since when."""
    figures: list[LayoutDOM] = []
    for tag, meaning in LOADS:
        figures += _model_and_layers(sheet, tag, meaning)
    dead = sheet.curves(DEAD)
    if dead:
        figures.append(sheet.chart(dead, "dead experts", title="Experts without a token, over all layers"))
    tables = []
    for run in sheet.runs:
        tags = sheet.maps[run.name].get(DEAD, {})
        curves = {layer: curve for layer, tag in tags.items() if (curve := run.curve(tag)) is not None}
        if not curves:
            continue
        sheet.shown.update(tags.values())
        figures.append(_map(sheet, run, curves, "dead experts", "Dead experts", of="greatest"))
        rows = [[one.layer, one.now, "-" if one.since is None else f"{one.since:,}", f"{one.most} at step {one.at:,}"] for one in dead_since(curves)]  # fmt: skip
        if rows:
            tables.append(Table(["layer", "dead now", "without a break since step", "most"], rows, f"Layers with dead experts{_of(sheet, run)}"))  # fmt: skip
    if not figures:
        if any(run.events is not None for run in sheet.runs):
            sheet.missing.append(
                "Loads of the experts: this trainer did not log them (--router compete or a baseline does)"
            )
        return None
    if not any(name.startswith("moe/load") for maps in sheet.maps.values() for name in maps):
        sheet.missing.append("Loads by layer: train with --moe-per-layer-logging")
    text = (
        "Loads are of whole steps over all ranks; 1 is balance. Counts by expert are not logged: which expert is dead, an "
        "audit of a checkpoint says."
    )
    return Section("Load of the experts", text, tables, figures)


def other_losses_section(sheet: Sheet) -> Section | None:
    """The router's own losses, as Megatron logs them."""
    layered = {tag for maps in sheet.maps.values() for layers in maps.values() for tag in layers.values()}
    tags = dict.fromkeys(
        tag for run in sheet.runs for tag in run.tags() if tag.endswith("_loss") and tag not in layered
    )
    figures: list[LayoutDOM] = []
    for tag in tags:
        figures += _model_and_layers(sheet, tag, tag.replace("_", " "))
    for run in sheet.runs:
        for name, layers in sheet.maps[run.name].items():
            if name.endswith("_loss") and not set(layers.values()) & sheet.shown:
                figures += _layers(sheet, run, name, name.removeprefix("moe/").replace("_", " "))
    return Section("The router's losses", figures=figures, open=False) if figures else None


def life_section(sheet: Sheet) -> Section | None:
    """Steps over time, with starts, stops, failures and checkpoints."""
    series, marks, tables = {}, [], []
    for run in sheet.runs:
        events, timed = sheet.events[run.name], step_times(run)
        begin = min([*(event.time for event in events), *([float(timed.times.min())] if timed else [])], default=None)
        if begin is None:
            continue
        if timed is not None:
            series[run.name] = ((timed.times - begin) / 3600, timed.values)
        marks += [Mark((event.time - begin) / 3600, event.text, event.kind) for event in events]
        tables += _life_tables(sheet, run, events, begin)
    if not series and not tables:
        return None
    figures = []
    if series:
        figures.append(lines(series, x_label="hours since the run began", y_label="step", title="Progress", marks=marks if sheet.single else (), limit=sheet.limit))  # fmt: skip
    if any(run.status is None for run in sheet.runs):
        sheet.missing.append("Attempts, stops and failures: only a job's run folder has them; starts are TensorBoard's")
    return Section("Attempts, stops, failures, checkpoints", tables=tables, figures=figures)


def settings_section(sheet: Sheet) -> Section | None:
    """The recipes, and in what they differ."""
    complete = all(run.arguments for run in sheet.runs)
    chosen = {run.name: {**run.settings, **(run.arguments if complete else {})} for run in sheet.runs}
    names = sorted({name for settings in chosen.values() for name in settings})
    if not names:
        sheet.missing.append("Settings: neither a recipe nor arguments in TensorBoard")
        return None
    if not sheet.single:
        differing = [name for name in names if len({settings.get(name) for settings in chosen.values()}) > 1]
        rows = [[name, *(_short(settings.get(name, "-")) for settings in chosen.values())] for name in differing]
        if not rows:
            return Section("Settings", "No setting differs.")
        return Section("Settings", tables=[Table(["setting", *chosen], rows, "What differs")])
    (run,) = sheet.runs
    rows = [[name, _short(value)] for name, value in sorted(run.settings.items())]
    return Section("Settings", tables=[Table(["setting", "value"], rows)], open=len(rows) <= 80)


def rest_section(sheet: Sheet) -> Section | None:
    """The scalars that no chart above shows, by their last values."""
    layered = {tag for maps in sheet.maps.values() for layers in maps.values() for tag in layers.values()}
    rows = []
    for run in sheet.runs:
        for tag in run.tags():
            curve = run.curve(tag)
            if curve is not None and tag not in sheet.shown | layered and not tag.endswith(" vs samples"):
                rows.append([run.name, tag, f"{len(curve.steps):,}", f"{curve.steps[-1]:,}", _value(curve.values[-1])])
    table = Table(["run", "scalar", "points", "last step", "last value"], rows[:1000])
    return Section("Other scalars", tables=[table], open=False) if rows else None


def _model_and_layers(sheet: Sheet, tag: str, meaning: str) -> list["LayoutDOM"]:
    """A scalar of the model, and below it its map by layer."""
    curves = sheet.curves(tag)
    title = f"{tag.partition('/')[2].replace('-', ' ').replace('_', ' ').capitalize() or tag}: {meaning}"
    figures = [sheet.chart(curves, tag.rpartition("/")[2], title=title)] if curves else []
    for run in sheet.runs:
        figures += _layers(sheet, run, tag if tag in sheet.maps[run.name] else f"moe/{tag}", meaning)
    return figures


def _layers(sheet: Sheet, run: Run, name: str, meaning: str) -> list["LayoutDOM"]:
    tags = sheet.maps[run.name].get(name, {})
    curves = {layer: curve for layer, tag in tags.items() if (curve := run.curve(tag)) is not None}
    if not curves:
        return []
    sheet.shown.update(tags.values())
    return [_map(sheet, run, curves, name.rpartition("/")[2], f"By layer: {meaning}")]


def _map(
    sheet: Sheet,
    run: Run,
    curves: Mapping[int, Curve],
    label: str,
    title: str,
    of: Literal["mean", "greatest"] = "mean",
) -> "LayoutDOM":
    cells = layer_map(curves, sheet.columns, of)
    even = len(cells.layers) == 1 or len(set(np.diff(cells.layers).tolist())) == 1
    rows: Sequence[Any] = cells.layers if even else [str(layer) for layer in cells.layers]
    return heat_map(cells.values_LC, x="step", y="layer", label=label, title=title + _of(sheet, run), columns=cells.steps_C.tolist(), rows=rows, x_range=sheet.x_range)  # fmt: skip


def _in_short(facts: Sequence[tuple[str, str]]) -> str:
    """State, step and loss in a line."""
    shown = {"state": "", "step": "step ", "loss": "loss "}
    return ", ".join(f"{shown[name]}{value}" for name, value in facts if name in shown)


def _of(sheet: Sheet, run: Run) -> str:
    return "" if sheet.single else f" ({run.name})"


def _limits(runs: Sequence[Run]) -> dict[str, float]:
    found = {run.name: run.number("compete-max-active-layers") for run in runs}
    return {name: value for name, value in found.items() if value is not None}


def _use(run: Run) -> list[str]:
    """How much a run competed, and how its router's agreement went."""
    active, agreement = run.curve("competition/active-layers"), run.curve("competition/agreement")
    assert active is not None
    cells = [f"{int((active.values > 0).sum()):,} of {len(active.values):,}", f"{np.nanmax(active.values):.0f}"]
    if agreement is None:
        return [*cells, "-", "-"]
    few = max(1, len(agreement.values) // 10)
    return [*cells, f"{np.nanmean(agreement.values[:few]):.3f}", f"{np.nanmean(agreement.values[-few:]):.3f}"]


def _life_tables(sheet: Sheet, run: Run, events: Sequence[Event], begin: float) -> list[Table]:
    of, tables = _of(sheet, run), []
    if run.attempts:
        rows = [
            [
                one.number,
                _clock(one.begin),
                duration(one.seconds),
                one.nodes,
                one.outcome,
                one.exit_code,
                one.why or "-",
            ]
            for one in run.attempts
        ]
        tables.append(
            Table(["attempt", "began", "took", "nodes", "outcome", "exit code", "why"], rows, f"Attempts{of}")
        )
    if run.failures:
        rows = [[one.attempt, _clock(one.time), one.rank, one.host, one.exit_code, _short(str(one.message))] for one in run.failures]  # fmt: skip
        tables.append(Table(["attempt", "when", "rank", "host", "exit code", "message"], rows, f"Failed ranks{of}"))
    rows = [[_clock(e.time), duration(e.time - begin), e.kind, "-" if e.step is None else f"{e.step:,}", _short(e.text)] for e in events]  # fmt: skip
    if rows:
        tables.append(Table(["when", "after", "what", "step", ""], rows[-500:], f"In order{of}"))
    return tables


def _last(curve: Curve | None) -> list[str]:
    return ["-", "-"] if curve is None else [f"{curve.steps[-1]:,}", _value(curve.values[-1])]


def _least(curve: Curve | None) -> list[str]:
    if curve is None or not np.isfinite(curve.values).any():
        return ["-", "-"]
    at = int(np.nanargmin(np.where(np.isfinite(curve.values), curve.values, np.nan)))
    return [f"{curve.steps[at]:,}", _value(curve.values[at])]


def _broken(curve: Curve | None) -> str:
    return "-" if curve is None else f"{int((~np.isfinite(curve.values)).sum()):,}"


def _value(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) and abs(value) < 1e-2 else f"{value:,.4f}"


def _clock(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (ValueError, OverflowError, OSError):
        return "-"


def _short(text: str) -> str:
    return text if len(text) <= LONG else f"{text[:LONG]}…"
