"""Tokens a second, seconds a step, and the share of the hardware's peak."""

import numpy as np

from megatron_compete.report.event_files import Curve
from megatron_compete.report.page import Section
from megatron_compete.report.run import Run
from megatron_compete.report.sections.sheet import Sheet


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
