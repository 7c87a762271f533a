"""The measurement as a table and as JSON."""

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.cases import Case
from benchmarks.ranks import Settings

NOTES = (
    "time: median over repeats, forward and backward of one layer, slowest rank; its ratios are medians of the ratios "
    "within a repeat. CPU: processor time of the rank, its waiting and other programs left out (on GPUs: the host's). GFLOP: the experts' matrices alone, per rank. sent: bytes to other ranks, per rank. peak: most "
    "memory above the state before the step (weights and gradient buffers exist by then), of the rank that needs most."
)


def hardware() -> str:
    """One line that says what was measured on."""
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, {versions}"
    return f"{_cpu_name()}, {len(os.sched_getaffinity(0))} cores, {versions}"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def print_table(results: list[dict[str, Any]], settings: Settings) -> None:
    """All steps and ratios of each case."""
    grouped = ", grouped GEMM" if settings.grouped_gemm else ""
    sample = f", {settings.fraction:.0%} of the tokens compete" if settings.fraction < 1 else ""
    title = f"One MoE layer, {settings.dtype}{grouped}{sample}, {settings.repeats} repeats\n{hardware()}"
    table = Table(title=title, title_justify="left", caption=NOTES, caption_justify="left")
    table.add_column("shape", no_wrap=True)
    table.add_column("step", no_wrap=True)
    for name in ("time ms", "CPU ms", "GFLOP", "sent fwd MB", "sent bwd MB", "sent MB", "peak MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        _add_case(table, result)
    Console(highlight=False, width=120).print(table)


def _add_case(table: Table, result: dict[str, Any]) -> None:
    shape = str(Case(**result["case"])).split("\n") + [""] * 3
    steps = result["steps"]
    for line, (name, step) in zip(shape, steps.items()):
        times = (f"{step[key]:.1f}" for key in ("ms", "cpu_ms"))
        table.add_row(line, name, *times, *(f"{value:.2f}" for value in _columns(step)))
    for name, time in result["time_ratios"].items():
        above, below = (steps[step] for step in name.split("/"))
        ratios = [time, _ratio(above["cpu_ms"], below["cpu_ms"]), *map(_ratio, _columns(above), _columns(below))]
        table.add_row("", f"[bold]{name}", *(f"[bold]{_format(ratio)}" for ratio in ratios))
    table.add_section()


def _columns(step: dict[str, Any]) -> list[float]:
    """GFLOP, and in MB: sent forward, sent backward, sent, peak."""
    forward, backward = step["sent_forward"] / 1e6, step["sent_backward"] / 1e6
    return [step["gflop"], forward, backward, forward + backward, step["peak"] / 1e6]


def _ratio(above: float, below: float) -> float | None:
    return above / below if below else None


def _format(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"


def write_json(path: Path, results: list[dict[str, Any]], settings: Settings) -> None:
    """Everything that was measured, bytes and milliseconds, each repeat's time included."""
    write_report(path, {"hardware": hardware(), "settings": settings.__dict__, "cases": results})


def write_report(path: Path, report: dict[str, Any]) -> None:
    """`report` as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
