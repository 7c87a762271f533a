"""Training and held-out loss."""

import numpy as np

from megatron_compete.report.event_files import Curve
from megatron_compete.report.page import Section, Table
from megatron_compete.report.sections.parts import shown_value
from megatron_compete.report.sections.sheet import Sheet


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


def _last(curve: Curve | None) -> list[str]:
    return ["-", "-"] if curve is None else [f"{curve.steps[-1]:,}", shown_value(curve.values[-1])]


def _least(curve: Curve | None) -> list[str]:
    if curve is None or not np.isfinite(curve.values).any():
        return ["-", "-"]
    at = int(np.nanargmin(np.where(np.isfinite(curve.values), curve.values, np.nan)))
    return [f"{curve.steps[at]:,}", shown_value(curve.values[at])]


def _broken(curve: Curve | None) -> str:
    return "-" if curve is None else f"{int((~np.isfinite(curve.values)).sum()):,}"
