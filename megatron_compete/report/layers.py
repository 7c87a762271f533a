"""Scalars by layer: as a map over the steps, and since when experts are dead.

L layers, S steps, C columns of a map.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from megatron_compete.report.event_files import Curve
from megatron_compete.report.run import Run
from megatron_compete.report.sampling import Floats

OURS, MEGATRONS = re.compile(r"(.+)/layer-(\d+)"), re.compile(r"(moe/.+)_layer_(\d+)")
"""`competition/agreement/layer-3` of `moe/metrics.py`, and `moe/load_balancing_loss_layer_2` of Megatron's tracker, which
counts layers from 0."""


@dataclass(frozen=True)
class LayerMap:
    """Cells of layers and steps."""

    values_LC: Floats
    layers: list[int]
    steps_C: Floats
    """The middle of each column."""


def by_layer(run: Run) -> dict[str, dict[int, str]]:
    """{scalar: {layer: tag}} of all scalars that were logged by layer; layers count from 1."""
    found: dict[str, dict[int, str]] = {}
    for tag in run.tags():
        if match := OURS.fullmatch(tag):
            found.setdefault(match[1], {})[int(match[2])] = tag
        elif match := MEGATRONS.fullmatch(tag):
            found.setdefault(match[1], {})[int(match[2]) + 1] = tag
    return found


def layer_map(curves: Mapping[int, Curve], columns: int, of: Literal["mean", "greatest"] = "mean") -> LayerMap:
    """A map of at most so many columns of equally many steps; NaN where nothing finite was logged."""
    layers = sorted(curves)
    first = min(int(curve.steps[0]) for curve in curves.values())
    last = max(int(curve.steps[-1]) for curve in curves.values())
    longest = max(len(curve.steps) for curve in curves.values())
    columns = max(1, min(columns, last - first + 1, longest))
    edges = np.linspace(first - 0.5, last + 0.5, columns + 1)
    values_LC = np.full((len(layers), columns), np.nan)
    for row, layer in enumerate(layers):
        curve = curves[layer]
        finite = np.isfinite(curve.values)
        places, values = np.searchsorted(edges, curve.steps[finite], side="right") - 1, curve.values[finite]
        if of == "mean":
            counts = np.bincount(places, minlength=columns)
            sums = np.bincount(places, weights=values, minlength=columns)
            values_LC[row] = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
        else:
            np.fmax.at(values_LC[row], places, values)
    return LayerMap(values_LC, layers, (edges[:-1] + edges[1:]) / 2)


@dataclass(frozen=True)
class DeadExperts:
    """What became of a layer's dead experts."""

    layer: int
    now: int
    """At the last logged step."""
    since: int | None
    """The first step from which on there was always one; None where there is none now."""
    most: int
    at: int
    """Step of the most."""


def dead_since(curves: Mapping[int, Curve]) -> list[DeadExperts]:
    """Of the layers in which an expert was dead at any logged step, those that have one now first."""
    found = []
    for layer, curve in curves.items():
        finite = np.isfinite(curve.values)
        steps, values = curve.steps[finite], curve.values[finite]
        if not len(values) or values.max() <= 0:
            continue
        alive = np.flatnonzero(values <= 0)
        first = int(alive[-1]) + 1 if len(alive) else 0
        now = int(values[-1])
        most = int(values.argmax())
        found.append(DeadExperts(layer, now, int(steps[first]) if now else None, int(values[most]), int(steps[most])))
    return sorted(found, key=lambda dead: (-dead.now, dead.layer))
