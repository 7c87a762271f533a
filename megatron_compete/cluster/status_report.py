"""`megatron-compete status RUN [RUN ...]`."""

import dataclasses
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from megatron_compete.cluster.queue import ask_queue
from megatron_compete.cluster.run_folder import RunFolder
from megatron_compete.cluster.status import RunStatus, read_status, runs_in
from megatron_compete.common.command_line import Command, check_options, option
from megatron_compete.common.errors import CompeteError

COLOURS = {
    "running": "green", "finished": "bold green", "starting": "cyan", "pending": "yellow", "requeued": "yellow",
    "stopped": "yellow", "stalled": "bold red", "refused": "bold red", "failed": "bold red", "new": "dim",
}  # fmt: skip
UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


@dataclass(frozen=True)
class StatusOptions:
    """The verb's flags."""

    runs: tuple[Path, ...] = option(MISSING, "runs", metavar="RUN", help="run folder, or the folder of a chain")
    json: bool = option(False, help="a JSON list of all that is known, in seconds and tokens")
    watch: float | None = option(None, metavar="SECONDS", help="show it again every so many seconds")

    def __post_init__(self) -> None:
        check_options(self)
        if self.watch is not None and self.watch <= 0:
            raise CompeteError(f"--watch {self.watch:g} is out of range: give seconds above 0")


def run_status(options: StatusOptions) -> None:
    """Show the state of runs, once or again and again.

    Raises:
        CompeteError: a folder that is no run.
    """
    if options.json:
        for statuses in _again(options):
            print(json.dumps([dataclasses.asdict(status) for status in statuses], indent=2), flush=True)
        return
    console = Console()
    if options.watch is None:
        console.print(report(read_all(options.runs)))
        return
    with Live(console=console, auto_refresh=False) as live:
        for statuses in _again(options):
            live.update(report(statuses), refresh=True)


def _again(options: StatusOptions) -> Iterator[list[RunStatus]]:
    while True:
        yield read_all(options.runs)
        if options.watch is None:
            return
        time.sleep(options.watch)


def read_all(paths: Iterable[Path]) -> list[RunStatus]:
    """Status of every run that these paths mean; Slurm is asked once."""
    folders = [run for path in paths for run in runs_in(path)]
    queue = ask_queue(job_id for run in folders if (job_id := RunFolder(run).job_id) is not None)
    return [read_status(run, queue) for run in folders]


def report(statuses: list[RunStatus]) -> Group:
    """A table of runs, or of all facts of a single one, and the failures below it."""
    table = _facts(statuses[0]) if len(statuses) == 1 else _overview(statuses)
    return Group(table, *_failures(statuses))


def _overview(statuses: list[RunStatus]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "job", "state", "step", "loss", "tokens/s", "checkpoint", "restarts", "used", "limit in", "done in"):  # fmt: skip
        table.add_column(heading, overflow="fold")
    for status in statuses:
        table.add_row(
            Text(Path(status.run).name), status.job_id or "-", _state(status), _step(status), _number(status.loss, ".4f"),
            _number(status.tokens_per_second, ",.0f"), _checkpoint(status), str(status.restarts),
            duration(status.used_seconds), duration(status.limit_left_seconds), duration(status.training_left_seconds),
        )  # fmt: skip
    return table


def _facts(status: RunStatus) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    failed = f", {len(status.failures)} after a failure" if status.failures else ""
    repeated = f", {status.repeated_steps} steps trained again" if status.repeated_steps else ""
    rows: dict[str, str | Text] = {
        "run": status.run,
        "job": f"{status.job_id or '-'} {status.kind}" + (f" on {status.nodes}" if status.nodes else ""),
        "state": _state(status, f": {status.reason}" if status.reason else ""),
        "step": _step(status) + _ago(status.progress_age_seconds),
        "loss": _number(status.loss, ".6f"),
        "tokens/s": _number(status.tokens_per_second, ",.0f"),
        "seconds a step": _number(status.seconds_per_step, ".3g"),
        "tokens": _number(status.consumed_tokens, ",d"),
        "checkpoint": _checkpoint(status),
        "restarts": f"{status.restarts}{failed}{repeated}",
        "time used": duration(status.used_seconds),
        "to the limit": duration(status.limit_left_seconds),
        "to the end": duration(status.training_left_seconds) + _requeues(status.requeues_left),
        "report": status.report or "-",
    }
    for name, value in rows.items():
        table.add_row(name, value if isinstance(value, Text) else Text(value))
    return table


def _failures(statuses: list[RunStatus]) -> list[Text]:
    lines = []
    for status in statuses:
        name = "" if len(statuses) == 1 else f"{Path(status.run).name}: "
        if name and status.reason:
            lines.append(f"{name}{status.state}: {status.reason}")
        lines += [f"{name}{failure}" for failure in status.failures]
    return [Text(line) for line in lines]


def _state(status: RunStatus, *more: str) -> Text:
    return Text.assemble((status.state, COLOURS.get(status.state, "")), *more)


def _step(status: RunStatus) -> str:
    if status.iteration is None:
        return "-"
    if not status.train_iters:
        return f"{status.iteration}"
    return f"{status.iteration}/{status.train_iters} {status.iteration / status.train_iters:.0%}"


def _checkpoint(status: RunStatus) -> str:
    if status.checkpoint is None:
        return "-"
    return f"{status.checkpoint}{_ago(status.checkpoint_age_seconds)}"


def _ago(seconds: float | None) -> str:
    return "" if seconds is None else f" ({duration(seconds)} ago)"


def _requeues(count: int | None) -> str:
    return f", in {count} further starts or more" if count else ""


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def duration(seconds: float | None) -> str:
    """Two units: `1 d 4 h`, `12 min 5 s`."""
    if seconds is None:
        return "-"
    left = max(0, round(seconds))
    for place, (unit, size) in enumerate(UNITS):
        if left >= size or unit == "s":
            small = UNITS[place + 1] if place + 1 < len(UNITS) else None
            rest = (left % size) // small[1] if small else 0
            return f"{left // size} {unit}" + (f" {rest} {small[0]}" if small and rest else "")
    raise AssertionError("seconds are a unit")


main = Command(
    name="status",
    description="""How runs are getting on: state, step, loss, speed, last checkpoint, restarts and failures with their
    reasons, time left. A folder of a chain shows all its jobs. Works without Slurm too, from the files alone.""",
    example="runs/competesmoe_154m --watch 60",
    options=StatusOptions,
    run=run_status,
)
