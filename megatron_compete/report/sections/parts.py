"""What several sections write alike: a scalar with its map by layer, and values as text."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from megatron_compete.report.charts import heat_map
from megatron_compete.report.event_files import Curve
from megatron_compete.report.layers import layer_map
from megatron_compete.report.run import Run
from megatron_compete.report.sections.sheet import Sheet

if TYPE_CHECKING:
    from bokeh.models import LayoutDOM

LONG = 300
"""Characters of a setting that are shown."""


def model_and_layers(sheet: Sheet, tag: str, meaning: str) -> list["LayoutDOM"]:
    """A scalar of the model, and below it its map by layer."""
    curves = sheet.curves(tag)
    title = f"{tag.partition('/')[2].replace('-', ' ').replace('_', ' ').capitalize() or tag}: {meaning}"
    figures = [sheet.chart(curves, tag.rpartition("/")[2], title=title)] if curves else []
    for run in sheet.runs:
        figures += layer_maps(sheet, run, tag if tag in sheet.maps[run.name] else f"moe/{tag}", meaning)
    return figures


def layer_maps(sheet: Sheet, run: Run, name: str, meaning: str) -> list["LayoutDOM"]:
    """The map of a run's metric by layer, if it was logged by layer; its scalars are then shown."""
    tags = sheet.maps[run.name].get(name, {})
    curves = {layer: curve for layer, tag in tags.items() if (curve := run.curve(tag)) is not None}
    if not curves:
        return []
    sheet.shown.update(tags.values())
    return [heat_map_of(sheet, run, curves, name.rpartition("/")[2], f"By layer: {meaning}")]


def heat_map_of(
    sheet: Sheet,
    run: Run,
    curves: Mapping[int, Curve],
    label: str,
    title: str,
    of: Literal["mean", "greatest"] = "mean",
) -> "LayoutDOM":
    """Curves of layers as a map over the steps; layers of several parts, or not evenly spaced, are rows by name."""
    cells = layer_map(curves, sheet.columns, of)
    even = len(cells.layers) == 1 or len(set(np.diff(cells.layers).tolist())) == 1
    named = run.tower_layers is not None or not even
    rows: Sequence[Any] = [run.layer_name(layer) for layer in cells.layers] if named else cells.layers
    return heat_map(cells.values_LC, x="step", y="layer", label=label, title=title + of_run(sheet, run), columns=cells.steps_C.tolist(), rows=rows, x_range=sheet.x_range)  # fmt: skip


def of_run(sheet: Sheet, run: Run) -> str:
    """What a title says of whose it is, where there are several runs."""
    return "" if sheet.single else f" ({run.name})"


def shown_value(value: float) -> str:
    """A value with four digits behind the point, or four that count where it is small."""
    return f"{value:.4g}" if math.isfinite(value) and abs(value) < 1e-2 else f"{value:,.4f}"


def shortened(text: str) -> str:
    """A text up to `LONG` characters."""
    return text if len(text) <= LONG else f"{text[:LONG]}…"
