"""Which experts are used: load, entropies, domains. L MoE layers, E experts, D domains."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from megatron_compete.audit.measures import by_layer, mean, number, short
from megatron_compete.audit.results import Audit, LayerAudit
from megatron_compete.audit.sections.parts import (
    LAYER,
    clip,
    layer_lines,
    layer_places,
    loads_in_even_shares,
    metric_lines,
    unique,
)
from megatron_compete.report import charts
from megatron_compete.report.page import Section, Table
from megatron_compete.report.sampling import Floats

if TYPE_CHECKING:
    from bokeh.models import LayoutDOM

DOMAIN_MAPS = 4
"""Layers whose experts' use by domain is shown."""
ROWS = 60
"""Domains in the table at most."""


def load(audit: Audit) -> Section:
    if not audit.layers:
        return Section("Load", "There is no MoE layer.")
    loads_LE = loads_in_even_shares(audit, lambda layer: layer.use.load)
    high = max(2.0, clip(loads_LE) or 2.0)
    label, rows = "load in even shares", layer_places(audit)
    figures: list[LayoutDOM] = [
        charts.heat_map(loads_LE, x="expert", y=LAYER, label=label, title="Load by expert", rows=rows, low=0, high=high),
        charts.heat_map(
            -np.sort(-loads_LE, axis=1), x="experts of the layer, most used first", y=LAYER, label=label,
            title="The same, sorted", rows=rows, low=0, high=high,
        ),
    ]  # fmt: skip
    if any(layer.use.dead for layer in audit.layers):
        figures.append(
            charts.steps_or_bars(
                {"": by_layer(audit, "dead")}, x_label=LAYER, y_label="dead experts", title="Dead experts"
            )
        )
    text = "Share of the assignments that go to each expert, times the number of experts: 1 is an even share. Colours end at the 99.5th percentile."
    return Section("Load", text, figures=figures)


def use(audit: Audit) -> Section:
    figures = charts.beside(
        metric_lines(audit, ("load_entropy", "token_entropy", "sequence_entropy"), "entropy, of its most", "Entropies"),
        metric_lines(audit, ("margin",), "margin", "Margin of the router"),
        metric_lines(audit, ("busiest",), "load in even shares", "Busiest expert"),
        metric_lines(audit, ("domain_information",), "bits", "Domain information"),
    )
    return Section("Use of the experts by layer", figures=figures)


def domains(audit: Audit) -> Section:
    title = "Use by domain"
    distances_LD = domain_distances(audit)
    rows = [
        (audit.domains[place], f"{tokens:,}", number(loss, 4), number(mean(distances_LD[:, place].tolist())))
        for place, (tokens, loss) in enumerate(zip(audit.tokens_by_domain, audit.loss_by_domain))
    ]
    more = f" The first {ROWS} of {len(rows)}; all are in audit.json." if len(rows) > ROWS else ""
    table = Table(("domain", "tokens", "loss", "distance of its load"), rows[:ROWS])
    if len(audit.domains) < 2:
        return Section(
            title, "The text has one domain: give several files, or a JSON key, to compare domains.", [table]
        )
    text = (
        "Each domain's load of the experts beside that of the whole text. The distance is the share of the domain's "
        f"assignments that would have to go elsewhere for the two to be the same (total variation).{more}"
    )
    names = unique([short(name) for name in audit.domains])
    layers = [layer.layer for layer in audit.layers]
    figures: list[LayoutDOM] = []
    if audit.layers and len(names) <= len(charts.PALETTE):
        shown = {name: (layers, distances_LD[:, place]) for place, name in enumerate(names)}
        figures.append(layer_lines(shown, "distance", "Distance of each domain's load"))  # fmt: skip
    chosen = sorted(audit.layers, key=lambda layer: -_or_least(layer.use.domain_information))[:DOMAIN_MAPS]
    figures += [_domain_map(layer, names) for layer in sorted(chosen, key=lambda layer: layer.layer)]
    return Section(title, text, [table], figures)


def domain_distances(audit: Audit) -> Floats:
    """Total variation [L, D] of each domain's load and that of all tokens, 0 to 1."""
    distances = [
        [0.5 * float(np.abs(np.subtract(domain, layer.use.load)).sum()) for domain in layer.use.load_by_domain]
        for layer in audit.layers
    ]
    return np.array(distances, dtype=np.float64).reshape(len(audit.layers), len(audit.domains))


def _domain_map(layer: LayerAudit, names: Sequence[str]) -> "LayoutDOM":
    difference_DE = (np.array(layer.use.load_by_domain) - np.array(layer.use.load)) * layer.experts
    title = f"Layer {layer.layer}: a domain's load less that of all, in even shares"
    return charts.heat_map(difference_DE, x="expert", y="", label="difference", title=title, rows=names, diverging=True)


def _or_least(value: float) -> float:
    return value if math.isfinite(value) else -math.inf
