"""Who competed, how often the router agreed, and the losses of competition."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from megatron_compete.report.charts import steps_or_bars
from megatron_compete.report.page import Section, Table
from megatron_compete.report.run import Run
from megatron_compete.report.sections.parts import model_and_layers
from megatron_compete.report.sections.sheet import COMPETITION, Sheet

if TYPE_CHECKING:
    from bokeh.models import LayoutDOM


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
        figures += model_and_layers(sheet, tag, meaning)
    top = sheet.curves("competition/agreement-top1")
    if top:
        figures.append(sheet.chart(top, "share of tokens", title="The best expert is the router's favourite"))
    if not any(name.startswith("competition/") for maps in sheet.maps.values() for name in maps):
        sheet.missing.append("Competition by layer: train with --moe-per-layer-logging")
    rows = [[run.name, *_use(run)] for run in sheet.runs if run.name in active]
    table = Table(["run", "steps with competition", "most layers at once", "agreement at first", "agreement at the end"], rows)  # fmt: skip
    return Section("Competition", tables=[table], figures=figures)


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
