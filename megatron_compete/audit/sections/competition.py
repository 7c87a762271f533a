"""The router beside competitions of all experts, and what other routing would change. L MoE layers, E experts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from megatron_compete.audit.measures import (
    METRICS,
    REGRET,
    TARGETS,
    by_layer,
    changes,
    has_spread,
    interval,
    mean,
    number,
    short,
    targets,
)
from megatron_compete.audit.results import Audit, Interval, LayerAudit
from megatron_compete.audit.sections.parts import (
    LAYER,
    absent,
    clip,
    layer_lines,
    layer_places,
    loads_in_even_shares,
    where,
)
from megatron_compete.report import charts
from megatron_compete.report.page import Section, Table


def competition(audit: Audit) -> Section:
    title = "The router beside competition"
    measured = [layer for layer in audit.layers if layer.competition]
    if not measured:
        return Section(title, absent("Competition of all experts"))
    chance = [layer.top_k / layer.experts for layer in measured]
    shown = {METRICS[key].name: by_layer(audit, key) for key in ("agreement_utility", "agreement_response")}
    shown["chance, K / E"] = ([layer.layer for layer in measured], chance)
    agreement = layer_lines(shown, "agreement", "Agreement of the router's choice with competitions of all experts")
    part = _part(audit, measured)
    maps = []
    for name, of in (("utility", _load_utility), ("response", _load_response)):
        differences_LE = loads_in_even_shares(part, of) - loads_in_even_shares(part, lambda layer: layer.use.load)
        high = clip(differences_LE)
        maps.append(
            charts.heat_map(
                differences_LE, x="expert", y=LAYER, label="difference", rows=layer_places(part), diverging=True,
                title=f"Load that {name} would make, less the router's, in even shares", low=high and -high, high=high,
            )
        )  # fmt: skip
    text = (
        f"On {mean([layer.competition.tokens for layer in measured if layer.competition]):,.0f} tokens of each layer all experts were asked."
        f"{where(audit, measured)} Agreement is the share of a token's experts on which the router and the competition agree; "
        "a router at chance knows nothing of what the competition prefers.\n\n"
        "In the maps, red experts would get more tokens than the router sends them, blue ones fewer."
    )
    return Section(title, text, figures=[agreement, *maps])


def _load_utility(layer: LayerAudit) -> Sequence[float]:
    return layer.competition.load_utility if layer.competition else []


def _load_response(layer: LayerAudit) -> Sequence[float]:
    return layer.competition.load_response if layer.competition else []


def regret(audit: Audit) -> Section:
    title = "Regret: what other routing would change"
    measured = [layer for layer in audit.layers if layer.regret]
    if not measured:
        return Section(title, absent("Regret"))
    found = {name: changes(audit, name) for name in targets(audit)}
    figures = [regret_chart({"": one}, name) for name, one in found.items()]
    rows = [_regret_row(name, one) for name, one in found.items()]
    header = ("tokens go to", "mean over layers", "lowest", "highest", "layers clearly below 0", "clearly above 0")
    tokens = f"{mean([layer.regret.tokens for layer in measured if layer.regret]):,.0f}"
    told = "\n".join(f"{name}: {TARGETS[name]}." for name in targets(audit) if name in TARGETS)
    text = f"{REGRET} Measured on {tokens} tokens of each layer.{where(audit, measured)}\n\n{told}"
    return Section(title, text, [Table(header, rows)], charts.beside(*figures))


def regret_chart(series: Mapping[str, Sequence[tuple[int, Interval]]], target: str) -> charts.Figure:
    """Regrets by layer of one audit or several, for one place that the tokens were sent to."""
    columns = {
        name: ([x for x, _ in found], [y.mean for _, y in found], [y.low for _, y in found], [y.high for _, y in found])
        for name, found in series.items()
    }
    chart: Any = charts.whiskers(columns, x_label=LAYER, y_label="nats a token", title=short(target), apart=0.2)
    chart.xaxis.ticker.min_interval = 1
    return chart


def _regret_row(name: str, found: Sequence[tuple[int, Interval]]) -> tuple[str, ...]:
    finite = [place for place in found if math.isfinite(place[1].mean)]
    ends = [
        f"{interval(change)} in layer {layer}"
        for layer, change in (choose(finite, key=lambda place: place[1].mean) for choose in (min, max) if finite)
    ] or ["–", "–"]
    below = sum(has_spread(change) and change.high < 0 for _, change in found)
    above = sum(has_spread(change) and change.low > 0 for _, change in found)
    return (name, number(mean([change.mean for _, change in found]), 2), *ends, f"{below} of {len(found)}", f"{above} of {len(found)}")  # fmt: skip


def _part(audit: Audit, layers: Sequence[LayerAudit]) -> Audit:
    return replace(audit, layers=list(layers))
