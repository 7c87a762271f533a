"""Learning rate, norms, batch."""

import numpy as np

from megatron_compete.report.page import Section
from megatron_compete.report.sections.sheet import Sheet


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
