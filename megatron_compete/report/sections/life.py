"""Attempts, stops, failures and checkpoints, over the time of a run."""

import time
from collections.abc import Sequence

from megatron_compete.cluster.status_report import duration
from megatron_compete.report.charts import Mark, lines
from megatron_compete.report.page import Section, Table
from megatron_compete.report.run import Run
from megatron_compete.report.run_events import Event, step_times
from megatron_compete.report.sections.parts import of_run, shortened
from megatron_compete.report.sections.sheet import Sheet


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


def _life_tables(sheet: Sheet, run: Run, events: Sequence[Event], begin: float) -> list[Table]:
    of, tables = of_run(sheet, run), []
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
        rows = [[one.attempt, _clock(one.time), one.rank, one.host, one.exit_code, shortened(str(one.message))] for one in run.failures]  # fmt: skip
        tables.append(Table(["attempt", "when", "rank", "host", "exit code", "message"], rows, f"Failed ranks{of}"))
    rows = [[_clock(e.time), duration(e.time - begin), e.kind, "-" if e.step is None else f"{e.step:,}", shortened(e.text)] for e in events]  # fmt: skip
    if rows:
        tables.append(Table(["when", "after", "what", "step", ""], rows[-500:], f"In order{of}"))
    return tables


def _clock(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (ValueError, OverflowError, OSError):
        return "-"
