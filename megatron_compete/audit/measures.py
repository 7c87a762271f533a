"""What an audit's numbers mean, and where each stands: pages, figures and comparisons read them through this table.

E experts, K experts of a token.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from megatron_compete.audit.results import Audit, Interval, LayerAudit

OLMOE = "OLMoE, arXiv 2409.02060, section 5"
LIBMOE = "LibMoE, arXiv 2411.00918"
COMPETE = "CompeteSMoE, arXiv 2505.13380"


@dataclass(frozen=True)
class Metric:
    """One number of a layer."""

    name: str
    meaning: str
    of: Callable[[LayerAudit], float | None]
    """None where the part was not measured."""
    source: str = ""
    whole: bool = False
    """A count."""

    def write(self, value: float | None) -> str:
        """For people."""
        return f"{value:,.0f}" if self.whole and value is not None and math.isfinite(value) else number(value)


def _read(part: str, name: str) -> Callable[[LayerAudit], float | None]:
    def read(layer: LayerAudit) -> float | None:
        found = getattr(layer, part)
        return None if found is None else float(getattr(found, name))

    return read


def _busiest(layer: LayerAudit) -> float:
    return max((share for share in layer.use.load if math.isfinite(share)), default=math.nan) * layer.experts


METRICS: Mapping[str, Metric] = {
    "load_entropy": Metric(
        "load entropy",
        "Entropy of the experts' shares of the assignments, over that of even shares: 1 is an even load, 0 a single expert.",
        _read("use", "load_entropy"),
        f"expert allocation entropy of {LIBMOE}",
    ),
    "busiest": Metric(
        "busiest expert",
        "Load of the expert with the most assignments, in even shares (1 / E).",
        _busiest,
    ),
    "dead": Metric(
        "dead experts",
        "Experts with less than a hundredth of an even share.",
        lambda layer: float(len(layer.use.dead)),
        whole=True,
    ),
    "token_entropy": Metric(
        "token entropy",
        "Entropy of one token's scores over that of even scores, mean over tokens: 0 is a router that is sure of one expert.",
        _read("use", "token_entropy"),
    ),
    "margin": Metric(
        "margin",
        "Score of the last expert that is chosen less that of the best one left out, mean over tokens; a token's scores sum to 1.",
        _read("use", "margin"),
    ),
    "sequence_entropy": Metric(
        "sequence entropy",
        "Entropy of the load within one sequence over that of an even load, mean over sequences: low where a sequence keeps to few experts.",
        _read("use", "sequence_entropy"),
    ),
    "domain_information": Metric(
        "domain information",
        "Mutual information of a token's domain and its expert in bits, less the bias of a finite sample: 0 where experts do not care for domains.",
        _read("use", "domain_information"),
        f"one number for the domain specialization of {OLMOE}",
    ),
    "agreement_utility": Metric(
        "agreement with utility",
        "Share of a token's K experts that are also the K whose larger share would lower the loss most, to first order; by chance K / E.",
        _read("competition", "agreement_utility"),
    ),
    "agreement_response": Metric(
        "agreement with response",
        "Share of a token's K experts that are also the K that answer most strongly; by chance K / E.",
        _read("competition", "agreement_response"),
        COMPETE,
    ),
    "output_similarity": Metric(
        "output similarity",
        "Cosine of two experts' outputs for the same token, mean over tokens and pairs: 1 is the same direction.",
        _read("geometry", "output_similarity"),
    ),
    "weight_similarity": Metric(
        "weight similarity",
        "Cosine of two experts' weights, all matrices as one vector, mean over pairs.",
        _read("geometry", "weight_similarity"),
    ),
    "router_similarity": Metric(
        "router similarity",
        "Cosine of two experts' rows of the router's weight, mean over pairs.",
        _read("geometry", "router_similarity"),
    ),
    "router_rank": Metric(
        "router rank",
        "Effective rank of the router's weight: exp of the entropy of its singular values, which are made to sum to 1; at most E.",
        _read("geometry", "router_rank"),
        "Roy and Vetterli 2007",
    ),
    "same_choice": Metric(
        "router saturation",
        "Share of a token's K experts that the other checkpoint chooses too, mean over tokens.",
        _read("against", "same_choice"),
        OLMOE,
    ),
    "changed_tokens": Metric(
        "expert change rate",
        "Share of the tokens whose set of experts is not the same in the other checkpoint.",
        _read("against", "changed_tokens"),
        f"{LIBMOE}, counts assignments, not tokens",
    ),
    "router_drift": Metric(
        "router drift",
        "Norm of the difference of the two routers' weights over the norm of the other's.",
        _read("against", "router_drift"),
    ),
    "expert_drift": Metric(
        "expert drift",
        "Norm of the difference of all experts' weights over the norm of the other's, expert by expert of the same number.",
        _read("against", "expert_drift"),
    ),
    "moved": Metric(
        "moved experts",
        "Experts whose weights are most like those of another number in the other checkpoint, one for each.",
        _read("against", "moved"),
        whole=True,
    ),
}

TARGETS: Mapping[str, str] = {
    "utility": "each token goes to the K experts whose larger share would lower its loss most, to first order. It is an oracle that has seen the next token: a guide to what choosing better is worth, no attainable gain, and first order can misjudge",
    "response": "each token goes to the K experts that answer most strongly, as in a competing step",
    "drop top-1": "the router's first choice is left out and the next in its order comes in. Near zero, experts stand in for each other, or the router does not know the best",
    "drop top-2": "the router's first two choices are left out and the next in its order come in",
    "random": "each token goes to K experts drawn at random. Near zero, the router is worth no more than a draw",
    "all": "each token goes to all experts, weighed by the router's scores: whether sparsity costs anything at this layer",
}
"""Where regret sends the tokens of a layer."""
TARGET_SOURCES = {"drop top-1": LIBMOE, "drop top-2": LIBMOE, "response": COMPETE}

REGRET = "Change of the loss, in nats a token, measured by another forward pass in which one layer's tokens go to other experts and everything else stays, the K weights of a token included; negative is better. Intervals are 95%, over sequences; regrets of layers do not add up."
COACTIVATION = (
    "Share of one expert's tokens that have the other too; (K - 1) / (E - 1) where experts are chosen independently."
)


def by_layer(audit: Audit, key: str) -> tuple[list[int], list[float]]:
    """Numbers of the layers that have one: which layers, and the values."""
    return series(audit, METRICS[key].of)


def series(audit: Audit, of: Callable[[LayerAudit], float | None]) -> tuple[list[int], list[float]]:
    found = [(layer.layer, of(layer)) for layer in audit.layers]
    shown = [(layer, float(value)) for layer, value in found if value is not None]
    return [layer for layer, _ in shown], [value for _, value in shown]


def mean(values: Sequence[float]) -> float:
    """Of those that are finite; NaN where there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def targets(audit: Audit) -> list[str]:
    """Every place that a layer's tokens were sent to, in the order of `TARGETS`, then others as they come."""
    found = {name for layer in audit.layers if layer.regret for name in layer.regret.changes}
    return [name for name in TARGETS if name in found] + sorted(found - TARGETS.keys())


def changes(audit: Audit, target: str) -> list[tuple[int, Interval]]:
    """The regret of each layer that has this one."""
    return [
        (layer.layer, layer.regret.changes[target])
        for layer in audit.layers
        if layer.regret and target in layer.regret.changes
    ]


def has_spread(change: Interval) -> bool:
    """Whether an interval says how sure a mean is: one sequence gives none, identical experts one of exactly 0."""
    finite = all(map(math.isfinite, (change.mean, change.low, change.high)))
    return finite and (change.low < change.high or change.mean == 0)


def number(value: float | None, digits: int = 3) -> str:
    """For people: `digits` significant digits, without exponents in the usual range; what was not measured is a dash."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    if value and not 1e-5 <= abs(value) < 1e7:
        return f"{value:.{digits - 1}e}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else digits - 1
    return f"{value:,.{min(decimals, 7)}f}"


def interval(value: Interval, digits: int = 2) -> str:
    """`-0.012 (-0.015 to -0.0090)`; the mean alone where one sequence gave no interval."""
    if value.low == value.high:
        return number(value.mean, digits)
    return f"{number(value.mean, digits)} ({number(value.low, digits)} to {number(value.high, digits)})"


def short(text: str, limit: int = 40) -> str:
    """A name that fits in a chart: its end, where paths differ."""
    text = text if len(text) <= limit else f"…{text[1 - limit :]}"
    return (
        text.replace("$$", "$\u200b$").replace("\\(", "\\\u200b(").replace("\\[", "\\\u200b[")
    )  # Bokeh would read TeX
