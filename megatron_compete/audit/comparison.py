"""Audits side by side: what differs, and whether it may be compared."""

import math
from collections.abc import Callable, Sequence

from megatron_compete.audit.measures import METRICS, TARGETS, by_layer, changes, interval, mean, number, short, targets
from megatron_compete.audit.results import Audit
from megatron_compete.audit.sections.competition import regret_chart
from megatron_compete.audit.sections.parts import LAYER, layer_lines, layer_places, loads_in_even_shares, unique
from megatron_compete.audit.sections.reference import definitions
from megatron_compete.report import charts
from megatron_compete.report.page import Page, Section, Table

Named = Sequence[tuple[str, Audit]]
GROUPS = {
    "Use of the experts by layer": ("load_entropy", "token_entropy", "margin", "sequence_entropy", "domain_information", "busiest", "dead"),
    "The router beside competition": ("agreement_utility", "agreement_response"),
    "How alike the experts are": ("output_similarity", "weight_similarity", "router_similarity", "router_rank"),
    "Against another checkpoint": ("same_choice", "changed_tokens", "router_drift", "expert_drift"),
}  # fmt: skip
MAPS = 4
"""Audits whose load is shown as a map."""


def compare(audits: Named) -> Page:
    """The page; differences are to the first audit."""
    audits = list(zip(unique([short(name) for name, _ in audits]), (audit for _, audit in audits)))
    parts = [_main(audits), _regret(audits), *(_group(audits, title, keys) for title, keys in GROUPS.items()), _load(audits), definitions([audit for _, audit in audits])]  # fmt: skip
    losses = [(name, f"loss {interval(audit.loss, 4)}") for name, audit in audits]
    return Page("Audits side by side", losses, parts)


def notes(audits: Named) -> list[str]:
    """What keeps numbers from being compared."""
    (first, base), *others = audits
    found = [
        f"{name} read another text than {first}: their losses, regrets and numbers by domain cannot be compared, the others only as far as the texts are alike."
        for name, audit in others
        if audit.text != base.text
    ]
    shape = [(layer.layer, layer.experts, layer.top_k) for layer in base.layers]
    found += [
        f"{name} has other MoE layers, experts or experts a token than {first}: lines are by the number of the layer, and what depends on E and K, such as chance, differs."
        for name, audit in others
        if [(layer.layer, layer.experts, layer.top_k) for layer in audit.layers] != shape
    ]
    if not any(audit.text != base.text for _, audit in others) and others:
        found.append(
            "All read the same tokens. The intervals are each audit's own; a difference on the same text is more certain than two such intervals suggest."
        )
    return found


def _main(audits: Named) -> Section:
    names = [name for name, _ in audits]
    base, others = audits[0][1], [audit for _, audit in audits[1:]]
    less = [f"{name} less {names[0]}" for name in names[1:]]
    nothing = ["" for _ in less]
    losses = [_difference(audit.loss.mean, base.loss.mean) if audit.text == base.text else "another text" for audit in others]  # fmt: skip
    whole = [
        ("model", *(audit.architecture for _, audit in audits), *nothing),
        ("checkpoint", *(audit.checkpoint for _, audit in audits), *nothing),
        ("tokens read", *(f"{audit.tokens:,}" for _, audit in audits), *nothing),
        ("digest of the text", *(audit.text[:12] for _, audit in audits), *nothing),
        ("loss, nats a token", *(interval(audit.loss, 4) for _, audit in audits), *losses),
        _counts("MoE layers", audits, lambda audit: len(audit.layers)),
        _counts("experts", audits, lambda audit: sum(layer.experts for layer in audit.layers)),
        _counts("dead experts", audits, lambda audit: sum(len(layer.use.dead) for layer in audit.layers)),
    ]
    means = [_row(METRICS[key].name, audits, _mean_of(key)) for key in METRICS if key != "dead" and _any(audits, key)]
    means += [_row(f"regret, {name}", audits, _mean_regret(name)) for name in _targets(audits)]
    tables = [
        Table(("", *names, *less), whole, "The whole models"),
        Table(("", *names, *less), means, "Means over layers"),
    ]
    return Section("The main numbers", "\n\n".join(notes(audits)), tables)


def _counts(name: str, audits: Named, of: Callable[[Audit], int]) -> tuple[str, ...]:
    values = [of(audit) for _, audit in audits]
    return (name, *(f"{value:,}" for value in values), *(f"{value - values[0]:+,}" for value in values[1:]))


def _row(name: str, audits: Named, of: Callable[[Audit], float | None]) -> tuple[str, ...]:
    values = [of(audit) for _, audit in audits]
    return (name, *map(number, values), *(_difference(value, values[0]) for value in values[1:]))


def _difference(value: float | None, base: float | None) -> str:
    if value is None or base is None or not math.isfinite(value - base):
        return "–"
    return f"{'+' if value > base else ''}{number(value - base)}"


def _mean_of(key: str) -> Callable[[Audit], float | None]:
    def of(audit: Audit) -> float | None:
        _, values = by_layer(audit, key)
        return mean(values) if values else None

    return of


def _mean_regret(target: str) -> Callable[[Audit], float | None]:
    def of(audit: Audit) -> float | None:
        found = changes(audit, target)
        return mean([change.mean for _, change in found]) if found else None

    return of


def _any(audits: Named, key: str) -> bool:
    return any(by_layer(audit, key)[0] for _, audit in audits)


def _targets(audits: Named) -> list[str]:
    found = dict.fromkeys(name for _, audit in audits for name in targets(audit))
    return [name for name in TARGETS if name in found] + [name for name in found if name not in TARGETS]


def _regret(audits: Named) -> Section:
    title = "Regret: what other routing would change"
    figures = [
        regret_chart({name: changes(audit, target) for name, audit in audits if changes(audit, target)}, target)
        for target in _targets(audits)
    ]
    if not figures:
        return Section(title, "Regret: not part of these audits.")
    return Section(title, "Change of the loss where one layer's tokens go elsewhere; negative is better.", figures=charts.beside(*figures))  # fmt: skip


def _group(audits: Named, title: str, keys: Sequence[str]) -> Section:
    figures = []
    for key in keys:
        shown = {name: by_layer(audit, key) for name, audit in audits if by_layer(audit, key)[0]}
        if shown:
            figures.append(layer_lines(shown, METRICS[key].name, METRICS[key].name))  # fmt: skip
    if not figures:
        return Section(title, "Not part of these audits.")
    missing = [name for name, audit in audits if not any(by_layer(audit, key)[0] for key in keys)]
    text = f"Not part of the audit of {', '.join(missing)}." if missing else ""
    return Section(title, text, figures=charts.beside(*figures))


def _load(audits: Named) -> Section:
    figures = [
        charts.heat_map(
            loads_in_even_shares(audit, lambda layer: layer.use.load), x="expert", y=LAYER, label="load in even shares",
            title=name, rows=layer_places(audit), low=0, high=4,
        )
        for name, audit in audits[:MAPS]
        if audit.layers
    ]  # fmt: skip
    text = "1 is an even share; colours end at 4." + (f" The first {MAPS} audits." if len(audits) > MAPS else "")
    return Section("Load", text, figures=charts.beside(*figures))
