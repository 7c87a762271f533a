"""The page of one run, or of several over each other: what was logged, in the order in which one asks for it."""

import time
from collections.abc import Sequence

import numpy as np

from megatron_compete.cluster.status_report import duration
from megatron_compete.report.page import Page, Section, Table
from megatron_compete.report.run import Run
from megatron_compete.report.sections.competition import competition_section
from megatron_compete.report.sections.life import life_section
from megatron_compete.report.sections.load import load_section, other_losses_section
from megatron_compete.report.sections.loss import loss_section
from megatron_compete.report.sections.optimiser import optimiser_section
from megatron_compete.report.sections.parts import shown_value
from megatron_compete.report.sections.settings import rest_section, settings_section
from megatron_compete.report.sections.sheet import Sheet
from megatron_compete.report.sections.speed import speed_section


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
    if run.tower_layers is not None:
        facts.append(("model", _parts_of(run)))
    if status is not None:
        facts += [("state", status.state + (f": {status.reason}" if status.reason else "")), ("job", status.job_id)]
    step = int(loss.steps[-1]) if loss is not None else status.iteration if status is not None else None
    last = run.number("train-iters") or (status.train_iters if status is not None else None)
    if step is not None:
        facts.append(("step", f"{step:,}" + (f" of {last:,.0f}" if last else "")))
    if loss is not None:
        facts.append(("loss", shown_value(loss.values[-1])))
        broken = np.flatnonzero(~np.isfinite(loss.values))
        if len(broken):
            facts.append(("loss not finite", f"at {len(broken):,} logged steps, first {loss.steps[broken[0]]:,}"))
    held_out = run.curve("lm loss validation")
    if held_out is not None:
        facts.append(("held-out loss", shown_value(held_out.values[-1])))
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


def _in_short(facts: Sequence[tuple[str, str]]) -> str:
    """State, step and loss in a line."""
    shown = {"state": "", "step": "step ", "loss": "loss "}
    return ", ".join(f"{shown[name]}{value}" for name, value in facts if name in shown)


def _parts_of(run: Run) -> str:
    """A vision-language model's parts in a few words."""
    decoder = run.number("num-layers")
    of_decoder = "" if decoder is None else f" of {decoder:.0f} layers"
    return f"{run.setting('vision-model-type')} tower of {run.tower_layers} layers, projector, decoder{of_decoder}"
