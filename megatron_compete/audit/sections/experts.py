"""How alike experts are, the router's geometry, and another checkpoint. E experts."""

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from megatron_compete.audit.findings import twins
from megatron_compete.audit.measures import by_layer, number
from megatron_compete.audit.results import Audit
from megatron_compete.audit.sections.parts import absent, clip, layer_lines, metric_lines, where
from megatron_compete.report import charts
from megatron_compete.report.page import Section, Table
from megatron_compete.report.sampling import block_means

if TYPE_CHECKING:
    from bokeh.models import LayoutDOM

PAIR_MAPS = 8
"""Layers whose pairs of experts are shown."""
PAIR_CELLS = 96
"""Cells of a side."""
PAIRS = 12
"""Pairs of a kind in the table."""


def experts(audit: Audit, matrices: Mapping[str, Tensor]) -> Section:
    title = "How alike the experts are"
    measured = [layer for layer in audit.layers if layer.geometry]
    figures: list[LayoutDOM] = []
    text = absent("The experts' outputs and weights")
    if measured:
        figures.append(metric_lines(audit, ("output_similarity", "weight_similarity"), "cosine", "Similarity of two experts, mean over all pairs"))  # fmt: skip
        text = (
            "Two experts whose outputs have a cosine near 1 do the same with a token: one of them is spare. Outputs can be "
            f"alike where weights are not, for an expert's inner units have no order.{where(audit, measured)}"
        )
    chosen = _chosen(audit, matrices)
    if chosen:
        alike = _pair_maps(matrices, "output_similarity", chosen, "outputs", diverging=True)
        together = _pair_maps(matrices, "coactivation", chosen, "co-activation", diverging=False)
        figures += charts.beside(*(one for pair in zip(alike, together) for one in pair), columns=4)
        text += (
            "\n\nMaps are of the similarity of two experts' outputs, and of how often they are chosen together. An expert beside itself is left out; all layers have the same colours. Of more than "
            f"{PAIR_CELLS} experts each cell is a mean of neighbours."
        )
    return Section(title, text, [_pair_table(audit)], figures)


def _pair_table(audit: Audit) -> Table:
    """Beside each other the pairs with the most similar outputs, and those that are chosen together most."""
    together = [
        (layer.layer, *pair) for layer in audit.layers for pair in layer.use.top_pairs if math.isfinite(pair[2])
    ]
    columns = [twins(audit)[:PAIRS], sorted(together, key=lambda pair: -pair[3])[:PAIRS]]
    rows = [
        tuple(cell for pair in pairs for cell in (("", "", "") if pair is None else (pair[0], f"{pair[1]} and {pair[2]}", number(pair[3]))))
        for pairs in zip_longest(*columns)
    ]  # fmt: skip
    header = ("layer", "experts", "cosine of outputs", "layer", "experts", "share chosen together")
    return Table(
        header, rows, "Pairs with the most similar outputs, and pairs that are chosen together most, of all layers"
    )


def _chosen(audit: Audit, matrices: Mapping[str, Tensor]) -> list[int]:
    """Layers whose pairs are shown: all, or some from the first to the last."""
    layers = [layer.layer for layer in audit.layers if {f"output_similarity.{layer.layer}", f"coactivation.{layer.layer}"} <= matrices.keys()]  # fmt: skip
    places = np.unique(np.linspace(0, len(layers) - 1, min(PAIR_MAPS, len(layers))).round()).tolist()
    return [layers[int(place)] for place in places]


def _pair_maps(matrices: Mapping[str, Tensor], name: str, layers: Sequence[int], label: str, diverging: bool) -> list["LayoutDOM"]:  # fmt: skip
    """Small maps of several layers, in the same colours."""
    sizes, cells = [], []
    for layer in layers:
        matrix_EE = matrices[f"{name}.{layer}"].detach().cpu().double().numpy().copy()
        np.fill_diagonal(matrix_EE, np.nan)
        sizes.append(len(matrix_EE))
        cells.append(block_means(matrix_EE, PAIR_CELLS, PAIR_CELLS))
    high = clip(np.concatenate([one.ravel() for one in cells]))
    found: list[LayoutDOM] = []
    for layer, size, shown in zip(layers, sizes, cells):
        places = np.linspace(0, size - 1, len(shown)).tolist()
        chart = charts.heat_map(
            shown, x="expert", y="", label="", title=f"Layer {layer}: {label}", columns=places, rows=places,
            diverging=diverging, low=None if high is None else -high if diverging else 0.0, high=high,
        )  # fmt: skip
        chart.height = 270
        found.append(chart)
    return found


def router(audit: Audit) -> Section:
    title = "Geometry of the router"
    measured = [layer for layer in audit.layers if layer.geometry]
    if not measured:
        return Section(title, absent("The router's weights"))
    rank: charts.Series = {
        "effective rank": by_layer(audit, "router_rank"),
        "experts": ([layer.layer for layer in measured], [layer.experts for layer in measured]),
    }
    text = (
        "Rows of the router's weight that point the same way cannot tell experts apart; an effective rank far below the "
        "number of experts says that many rows lie in few directions."
    )
    figures = charts.beside(
        metric_lines(audit, ("router_similarity",), "cosine", "Similarity of two rows, mean over all pairs"),
        layer_lines(rank, "rank", "Effective rank"),
    )
    return Section(title, text, figures=figures)


def against(audit: Audit) -> Section:
    measured = [layer for layer in audit.layers if layer.against]
    if not measured:
        return Section("Against another checkpoint", absent("A comparison to another checkpoint"))
    figures = charts.beside(
        metric_lines(audit, ("same_choice", "changed_tokens"), "share", "The router's choice"),
        metric_lines(audit, ("router_drift", "expert_drift"), "relative norm", "Drift of the weights"),
    )
    rows = [
        (layer.layer, f"{layer.against.moved} of {layer.experts}", _moves(layer.against.matched))
        for layer in measured
        if layer.against and layer.against.moved
    ]
    text = f"The other checkpoint: {audit.against or 'not named'}. Both read the same tokens.{where(audit, measured)}"
    if not rows:
        text += "\n\nEvery expert's weights are most like those of the same number there."
    tables = [Table(("layer", "moved", "expert → its like in the other checkpoint"), rows, "Experts that are most like another number")]  # fmt: skip
    return Section("Against another checkpoint", text, tables if rows else [], figures)


def _moves(matched: Sequence[int]) -> str:
    moved = [f"{one} → {other}" for one, other in enumerate(matched) if one != other]
    return "expert " + ", ".join(moved[:12]) + (f" and {len(moved) - 12} more" if len(moved) > 12 else "")
