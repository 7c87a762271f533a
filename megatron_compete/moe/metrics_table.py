"""Which metrics there are, and how each becomes one number.

Layers record quantities: sums over tokens that may be added up over microbatches and ranks, and nothing else. A metric
reads one quantity after it was summed over all ranks. `LayerSums` packs all quantities of all layers of the model into
one tensor whose shape follows from the table, the layers and the experts alone, never from what was recorded: ranks of
different pipeline stages always agree on it.

L layers that can compete, E experts.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor


@dataclass(frozen=True)
class Quantity:
    """What a layer records under a name: [sum over tokens, tokens], or the tokens of each expert [E]."""

    name: str
    per_expert: bool = False

    def width(self, num_experts: int) -> int:
        """Numbers that it takes in a layer's row."""
        return num_experts if self.per_expert else 2

    def recorded(self, sums: Tensor) -> bool:
        """Whether any token is in the sums [width]."""
        return bool((sums.sum() if self.per_expert else sums[1]) > 0)


@dataclass(frozen=True)
class Metric:
    """A number per layer, and one for the model."""

    tag: str
    """Its name in TensorBoard; the layer's has `/layer-N` appended."""
    quantity: Quantity
    of_layer: Callable[[Tensor], Tensor]
    """From the quantity's sums over all ranks, [width], to the layer's scalar."""
    of_model: Callable[[Sequence[float]], float] = mean
    """From the values of the layers that recorded something to the model's."""
    if_none: float | None = None
    """The model's value where no layer recorded anything; None writes nothing then."""
    per_layer: bool = True


def token_mean(sums: Tensor) -> Tensor:
    """[sum, tokens] to the mean over tokens."""
    return sums[0] / sums[1]


def tokens(sums: Tensor) -> Tensor:
    """[sum, tokens] to the tokens."""
    return sums[1]


def largest_load(tokens_E: Tensor) -> Tensor:
    """Tokens of the busiest expert, relative to the mean; 1 is balance."""
    return tokens_E.max() / tokens_E.mean()


def smallest_load(tokens_E: Tensor) -> Tensor:
    """Tokens of the idlest expert, relative to the mean."""
    return tokens_E.min() / tokens_E.mean()


def load_spread(tokens_E: Tensor) -> Tensor:
    """Standard deviation of the experts' tokens, relative to the mean."""
    return tokens_E.std(correction=0) / tokens_E.mean()


def dead_experts(tokens_E: Tensor) -> Tensor:
    """Experts without a token."""
    return (tokens_E == 0).sum()


EXPERT_TOKENS = Quantity("expert_tokens", per_expert=True)
AGREEMENT = Quantity("agreement")
DISTILLATION = Quantity("distillation")

ROUTING_METRICS = (
    Metric("moe/load-max", EXPERT_TOKENS, largest_load, of_model=max),
    Metric("moe/load-min", EXPERT_TOKENS, smallest_load, of_model=min),
    Metric("moe/load-std", EXPERT_TOKENS, load_spread),
    Metric("moe/dead-experts", EXPERT_TOKENS, dead_experts, of_model=sum),
    Metric("moe/router-entropy", Quantity("router_entropy"), token_mean),
    Metric("moe/expert-change-rate", Quantity("expert_changes"), token_mean),
)
"""Every logged step, competing or not; the last two at console intervals alone."""

AGREEMENT_METRICS = (
    Metric("competition/tokens", AGREEMENT, tokens, of_model=sum),
    Metric("competition/agreement", AGREEMENT, token_mean),
    Metric("competition/agreement-top1", Quantity("agreement_top1"), token_mean),
)
RESPONSE_METRICS = (
    Metric("competition/active-layers", DISTILLATION, token_mean, of_model=len, if_none=0.0, per_layer=False),
    Metric("competition/distillation-loss", DISTILLATION, token_mean),
    Metric("competition/diversity-loss", Quantity("diversity"), token_mean),
    Metric("competition/response-balance-loss", Quantity("response_balance"), token_mean),
    *AGREEMENT_METRICS,
)
UTILITY_METRICS = (
    Metric("competition/active-layers", AGREEMENT, token_mean, of_model=len, if_none=0.0, per_layer=False),
    *AGREEMENT_METRICS,
)
COMPETITION_METRICS = {"response": RESPONSE_METRICS, "utility": UTILITY_METRICS}
"""By kind of competition. Steps at which a layer competes. `active-layers` counts those that did, whatever the schedule says."""


class LayerSums:
    """The packed sums of all quantities, fp64 [L, columns]: token counts stay exact up to 2^53.

    Layers may have different numbers of experts; a row has columns for the most of them, and uses its own.

    Args:
        metrics: whose quantities are kept.
        layer_numbers: Megatron numbers of all layers of the model that record, on whatever rank.
        num_experts: E, or that of each layer by its number.
        device: of the layers, or None for the CPU.
    """

    def __init__(
        self,
        metrics: Sequence[Metric],
        layer_numbers: Sequence[int],
        num_experts: int | Mapping[int, int],
        device: torch.device | int | None = None,
    ) -> None:
        self.metrics = metrics
        self._rows = {number: row for row, number in enumerate(layer_numbers)}
        self._num_experts: dict[int, int] = (
            dict.fromkeys(layer_numbers, num_experts) if isinstance(num_experts, int) else dict(num_experts)
        )
        self._quantities = {metric.quantity.name: metric.quantity for metric in metrics}
        self._columns: dict[str, slice] = {}
        most, end = max(self._num_experts.values(), default=0), 0
        for name, quantity in self._quantities.items():
            start, end = end, end + quantity.width(most)
            self._columns[name] = slice(start, end)
        self.packed = torch.zeros(len(self._rows), end, dtype=torch.float64, device=device)

    def add_mean(self, layer_number: int, name: str, value: Tensor, num_tokens: int | Tensor) -> None:
        """Add a mean over `num_tokens` tokens."""
        cell = self._cell(layer_number, name)
        cell[0] += value.detach() * num_tokens
        cell[1] += num_tokens

    def add_counts(self, layer_number: int, name: str, counts_E: Tensor) -> None:
        """Add tokens per expert."""
        self._cell(layer_number, name).add_(counts_E)

    def _cell(self, layer_number: int, name: str) -> Tensor:
        return self._of_layer(self.packed, layer_number, name)

    def _of_layer(self, packed: Tensor, layer_number: int, name: str) -> Tensor:
        """A layer's sums of one quantity, [width] of its own number of experts."""
        width = self._quantities[name].width(self._num_experts[layer_number])
        return packed[self._rows[layer_number], self._columns[name]][:width]

    def all_reduce(self) -> None:
        """Sum over all ranks: one collective, of the same size on each."""
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.packed)

    def scalars(self, per_layer: bool) -> dict[str, float]:
        """{tag: value} of all metrics that something was recorded for; one transfer from the device."""
        packed = self.packed.cpu()
        found: dict[str, float] = {}
        for metric in self.metrics:
            rows = {number: self._of_layer(packed, number, metric.quantity.name) for number in self._rows}
            recorded = {number: sums for number, sums in rows.items() if metric.quantity.recorded(sums)}
            values = {number: float(metric.of_layer(sums)) for number, sums in recorded.items()}
            if values:
                found[metric.tag] = float(_of_model(metric, list(values.values())))
            elif metric.if_none is not None:
                found[metric.tag] = metric.if_none
            if per_layer and metric.per_layer:
                found.update({f"{metric.tag}/layer-{number}": value for number, value in values.items()})
        return found


def _of_model(metric: Metric, values: list[float]) -> float:
    """A layer's NaN is the model's; `max` and `min` would pass over it."""
    broken = any(math.isnan(value) for value in values)
    return math.nan if broken and metric.of_model is not len else metric.of_model(values)
