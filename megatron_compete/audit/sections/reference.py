"""What an audit is of, what stands out, every number, and what the numbers mean."""

from collections.abc import Sequence

from megatron_compete.audit.findings import findings
from megatron_compete.audit.measures import (
    COACTIVATION,
    METRICS,
    REGRET,
    TARGET_SOURCES,
    TARGETS,
    by_layer,
    interval,
    mean,
    number,
    targets,
)
from megatron_compete.audit.results import Audit
from megatron_compete.report.page import Section, Table


def summary(audit: Audit) -> list[tuple[str, str]]:
    """Names and values on top of the page."""
    experts = sum(layer.experts for layer in audit.layers)
    dead = sum(len(layer.use.dead) for layer in audit.layers)
    found = [
        ("Model", f"{audit.architecture}, {_count(audit.parameters)} parameters, {audit.dtype}"),
        ("MoE layers", f"{len(audit.layers)} of {_spread([layer.experts for layer in audit.layers])} experts, {_spread([layer.top_k for layer in audit.layers])} a token"),
        ("Text", f"{audit.tokens:,} tokens, {len(audit.domains)} {'domain' if len(audit.domains) == 1 else 'domains'}"),
        ("Loss", f"{interval(audit.loss, 4)} nats a token"),
        ("Dead experts", f"{dead:,} of {experts:,}"),
    ]  # fmt: skip
    chance = mean([layer.top_k / layer.experts for layer in audit.layers if layer.competition])
    for key in ("agreement_utility", "agreement_response"):
        _, values = by_layer(audit, key)
        if values:
            found.append((METRICS[key].name.capitalize(), f"{number(mean(values))} (chance {number(chance)})"))
    _, same = by_layer(audit, "same_choice")
    if same:
        found.append(("Router saturation", f"{number(mean(same))} against {audit.against or 'the other checkpoint'}"))
    return found


def _count(parameters: int) -> str:
    return f"{number(parameters / 1e9)} B" if parameters >= 1e9 else f"{number(parameters / 1e6)} M"


def stands_out(audit: Audit) -> Section:
    text = "\n\n".join(findings(audit))
    read = f"The model {audit.checkpoint} read {audit.sequences:,} sequences of {audit.sequence_length:,} tokens."
    return Section("What stands out", f"{read}\n\n{text}")


def numbers(audit: Audit) -> Section:
    keys = [key for key in METRICS if any(METRICS[key].of(layer) is not None for layer in audit.layers)]
    header = ("layer", "experts", "K", *(METRICS[key].name for key in keys))
    rows = [
        (layer.layer, layer.experts, layer.top_k, *(METRICS[key].write(METRICS[key].of(layer)) for key in keys))
        for layer in audit.layers
    ]
    return Section("All numbers by layer", "", [Table(header, rows)], open=False)


def cost(audit: Audit) -> Section:
    if not audit.cost:
        return Section("Cost of this audit", "Not recorded.")
    rows = [
        (name.removesuffix(" bytes"), f"{value / 2**30:.2f} GiB" if name.endswith("bytes") else f"{number(value)} s")
        for name, value in audit.cost.items()
    ]
    return Section("Cost of this audit", "", [Table(("part", "cost"), rows)])


def definitions(audits: Sequence[Audit]) -> Section:
    """What every number means, and where its definition comes from."""
    names = dict.fromkeys(name for audit in audits for name in targets(audit) if name in TARGETS)
    rows = [(metric.name, metric.meaning, metric.source) for metric in METRICS.values()]
    rows.append(("co-activation", COACTIVATION, METRICS["same_choice"].source))
    rows.append(("regret", REGRET, ""))
    rows += [(f"regret, {name}", f"Regret where {TARGETS[name]}.", TARGET_SOURCES.get(name, "")) for name in names]  # fmt: skip
    text = "The formulas are in docs/guides/audit.md. Where no source is named, the definition is this project's."
    return Section("Definitions", text, [Table(("", "meaning", "source"), rows)], open=False)


def _spread(values: Sequence[int]) -> str:
    """`8`, or `8 to 64`."""
    ends = sorted({min(values, default=0), max(values, default=0)})
    return " to ".join(map(str, ends))
