"""What the sections have in common. L MoE layers, E experts."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from megatron_compete.audit.findings import named
from megatron_compete.audit.measures import METRICS, by_layer
from megatron_compete.audit.results import Audit, LayerAudit
from megatron_compete.report import charts
from megatron_compete.report.sampling import Floats

LAYER = "layer of the model"
FEW = 100
"""Layers up to which lines have dots."""


def metric_lines(audit: Audit, keys: Sequence[str], y_label: str, title: str = "") -> charts.Figure:
    """Metrics over the layers, in one chart."""
    return layer_lines({METRICS[key].name: by_layer(audit, key) for key in keys}, y_label, title)


def layer_lines(series: charts.Series, y_label: str, title: str = "") -> charts.Figure:
    """Series over the layers, in one chart; ticks are at layers only."""
    few = all(len(np.asarray(x)) <= FEW for x, _ in series.values())
    chart: Any = charts.lines(series, x_label=LAYER, y_label=y_label, title=title, points=few)
    chart.xaxis.ticker.min_interval = 1
    return chart


def loads_in_even_shares(audit: Audit, of: Callable[[LayerAudit], Sequence[float]]) -> Floats:
    """Loads [L, E] of the layers times their E, so that 1 is an even share; NaN beyond a layer's experts."""
    loads_LE = np.full((len(audit.layers), max(layer.experts for layer in audit.layers)), np.nan)
    for row, layer in enumerate(audit.layers):
        loads_LE[row, : layer.experts] = np.array(of(layer), dtype=np.float64) * layer.experts
    return loads_LE


def layer_places(audit: Audit) -> list[int] | list[str]:
    """The layers' places on an axis where they are evenly spaced, else their names."""
    layers = [layer.layer for layer in audit.layers]
    return layers if len(set(np.diff(layers).tolist())) <= 1 else [str(layer) for layer in layers]


def unique(names: Sequence[str]) -> list[str]:
    """Names with a number at those that came before, so that each is one series of a chart."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found


def absent(what: str) -> str:
    return f"{what}: not part of this audit."


def where(audit: Audit, measured: Sequence[LayerAudit]) -> str:
    if len(measured) == len(audit.layers):
        return ""
    return f" Of {len(measured)} of {len(audit.layers)} layers: {named([layer.layer for layer in measured])}."


def clip(values: Floats) -> float | None:
    """Where colours end, so that a few great values do not hide the others."""
    finite = np.abs(values[np.isfinite(values)])
    return float(np.quantile(finite, 0.995)) or None if finite.size else None
