"""What router and competition did, in TensorBoard, wandb and on the console.

Layers record sums on their device; at a logged step one all-reduce over all ranks, of one packed tensor, makes them
those of the whole step, in any layout: pipeline stages hold different layers, all other ranks different tokens. At
other steps, and where nobody reads them, nothing is computed, sent or waited for. Nothing here is part of the graph.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from megatron.core.models.hybrid.hybrid_layer_allocation import Symbols, get_hybrid_layer_counts
from megatron.core.transformer.moe.moe_logging import (
    MoEMetricsTracker,
    get_moe_metrics_tracker,
    set_moe_metrics_tracker,
)
from torch import Tensor

from megatron_compete.moe.competition import Competition, competing_layers, parts_of
from megatron_compete.moe.metrics_probe import RouterProbe
from megatron_compete.moe.metrics_table import COMPETITION_METRICS, ROUTING_METRICS, LayerSums
from megatron_compete.routing.losses import token_mean
from megatron_compete.routing.router_statistics import router_entropy


@dataclass(frozen=True)
class LogIntervals:
    """At which iterations (counted from 1) something is logged; alike on all ranks."""

    scalars: int | None = 1
    """Every so many iterations for TensorBoard and wandb; None where there is neither."""
    console: int = 1
    """Every so many iterations for a printed line."""

    def logs(self, iteration: int) -> bool:
        """Whether the step that ends in `iteration` is logged, wherever."""
        return (self.scalars is not None and iteration % self.scalars == 0) or self.prints(iteration)

    def prints(self, iteration: int) -> bool:
        """Whether a line is printed. What costs a pass over logits or a routing of its own is logged then."""
        return iteration % self.console == 0


@dataclass(frozen=True)
class LayerCounts:
    """What the trainer tells Megatron's tracker wrongly of a hybrid model, for both of which it gives the MoE layers of all,
    and of a model of several parts, of which it gives the language model's."""

    slots: int
    """Layers that a router's loss has a place for, whether they have a router or not, MTP included."""
    routers: int
    """MoE layers, MTP included."""

    @classmethod
    def of(cls, model: Any) -> "LayerCounts | None":
        """Those of a hybrid model's configuration, or of one of several parts; None for a GPT's, of which the trainer gives
        the right ones."""
        pattern, parts = getattr(model, "hybrid_layer_pattern", None), parts_of(model)
        if pattern is None and len(parts) == 1:
            return None
        slots = sum(part.transformer.num_layers + (part.transformer.mtp_num_layers or 0) for part in parts)
        routers = len(competing_layers(model)) if pattern is None else get_hybrid_layer_counts(pattern)[Symbols.MOE]
        return cls(slots, routers)


class CountedTracker(MoEMetricsTracker):
    """Megatron's MoE tracker with these counts instead of its caller's; None: as its caller has them.

    With others, stages without experts would reduce tensors of another length than stages with them, and wait for ever.
    """

    def __init__(self, counts: LayerCounts | None = None) -> None:
        super().__init__()
        self.counts = counts

    def record(self, name: str, value: Tensor, layer_number: int, num_layers: int, *args: Any, **kwargs: Any) -> None:
        """Megatron's, with a place for every layer of the model: a router gives the layers of its own settings."""
        super().record(name, value, layer_number, self.counts.slots if self.counts else num_layers, *args, **kwargs)

    def ensure_initialized(self, name: str, num_layers: int, device: Any = None) -> None:
        """Megatron's, with room for every layer."""
        super().ensure_initialized(name, self.counts.slots if self.counts else num_layers, device)

    def _count_moe_layers(self, *args: Any, **kwargs: Any) -> int:
        return self.counts.routers if self.counts else super()._count_moe_layers(*args, **kwargs)


class CompetitionMetrics(CountedTracker):
    """Megatron's MoE tracker, with the table's metrics beside its own.

    Args:
        competition: whose layers report.
        num_experts: of each layer, or by its number where layers differ.
        intervals: when.
        counts: of a hybrid model, or of one of several parts.
    """

    def __init__(
        self,
        competition: Competition,
        num_experts: int | Mapping[int, int],
        intervals: LogIntervals,
        counts: LayerCounts | None = None,
    ) -> None:
        super().__init__(counts)
        self.competition = competition
        self.num_experts = num_experts
        self.intervals = intervals

    @cached_property
    def sums(self) -> LayerSums:
        """Made when first needed: at construction this rank's device need not be chosen yet."""
        config = self.competition.config
        metrics = ROUTING_METRICS + (COMPETITION_METRICS[config.kind] if config.enabled else ())
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        return LayerSums(metrics, self.competition.layer_numbers, self.num_experts, device)

    def record_means(self, layer_number: int, num_tokens: int | Tensor, **values: Tensor) -> None:
        """Record one microbatch of a competing layer: means over `num_tokens` tokens, by quantity."""
        for name, value in values.items():
            self.sums.add_mean(layer_number, name, value, num_tokens)

    def iteration(self) -> int:
        """The iteration that the step in progress will be logged as."""
        return self.competition.current_step() + 1

    def report(
        self,
        loss_scale: float,
        iteration: int,
        writer: Any = None,
        wandb_writer: Any = None,
        per_layer_logging: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> str:
        """Megatron's report and ours; to be called once a step on every rank."""
        ours = ""
        if self.intervals.logs(iteration):
            scalars = self._reduced(per_layer_logging)
            self._log_scalars(scalars, iteration, writer, wandb_writer)
            ours = console_text(scalars)
        text = super().report(loss_scale, iteration, writer, wandb_writer, per_layer_logging, *args, **kwargs)
        return text + ours

    def _reduced(self, per_layer: bool) -> dict[str, float]:
        self.sums.all_reduce()
        scalars = self.sums.scalars(per_layer)
        self.sums.packed.zero_()
        return scalars


def console_text(scalars: dict[str, float]) -> str:
    """What a printed line says of a step."""
    parts = []
    if "competition/active-layers" in scalars:
        parts.append(f"competing layers: {scalars['competition/active-layers']:.0f}")
    if "competition/agreement" in scalars:
        parts.append(f"agreement: {scalars['competition/agreement']:.3f}")
    if "moe/load-max" in scalars:
        parts.append(f"expert load: {scalars['moe/load-min']:.2f} to {scalars['moe/load-max']:.2f}")
        parts.append(f"dead experts: {scalars['moe/dead-experts']:.0f}")
    return "".join(f" {part} |" for part in parts)


def install_metrics(
    competition: Competition,
    num_experts: int | Mapping[int, int],
    intervals: LogIntervals,
    counts: LayerCounts | None = None,
) -> CompetitionMetrics:
    """Make this competition's metrics those that layers record in, and that Megatron's MoE tracker reports."""
    metrics = CompetitionMetrics(competition, num_experts, intervals, counts)
    set_moe_metrics_tracker(metrics)
    return metrics


def install_counts(model: Any) -> None:
    """Have Megatron's MoE tracker count the layers of a hybrid model, or of one of several parts, as they are, where there
    is no competition."""
    counts = LayerCounts.of(model)
    if counts is not None:
        set_moe_metrics_tracker(CountedTracker(counts))


def metrics_due() -> CompetitionMetrics | None:
    """The metrics, where they are installed and the pass in progress counts.

    The step must be logged, and the pass have gradients: evaluation has none, nor has the first of the two passes of a
    recomputed layer. That the module trains, the caller knows.
    """
    tracker = get_moe_metrics_tracker()
    if isinstance(tracker, CompetitionMetrics) and torch.is_grad_enabled():
        return tracker if tracker.intervals.logs(tracker.iteration()) else None
    return None


def record_competition(layer_number: int, num_tokens: int | Tensor, **values: Tensor) -> None:
    """`CompetitionMetrics.record_means`, where metrics are due."""
    metrics = metrics_due()
    if metrics is not None:
        metrics.record_means(layer_number, num_tokens, **values)


def record_routing(
    layer_number: int, probabilities: Callable[[], Tensor] | None, routing_map_TE: Tensor, valid_T: Tensor | None
) -> None:
    """Record where one microbatch went, and at a console interval how undecided the router was.

    Args:
        probabilities: the router's [T, E], also at a step at which the competition routes; asked where they count.
            None: nobody knows them any more.
        routing_map_TE: the experts that the tokens went to, bool.
        valid_T: mask of the tokens that count, None for all.
    """
    metrics = metrics_due()
    if metrics is None:
        return
    if probabilities is not None and metrics.intervals.prints(metrics.iteration()):
        entropy = token_mean(router_entropy(probabilities().detach()), valid_T)
        num_tokens = len(routing_map_TE) if valid_T is None else valid_T.sum()
        metrics.sums.add_mean(layer_number, "router_entropy", entropy, num_tokens)
    if valid_T is not None:
        routing_map_TE = routing_map_TE & valid_T.unsqueeze(-1)
    metrics.sums.add_counts(layer_number, "expert_tokens", routing_map_TE.sum(dim=0))


def record_changes(
    layer_number: int,
    probe: RouterProbe,
    hidden_states: Tensor,
    valid_T: Tensor | None,
    choose: Callable[[Tensor], Tensor],
) -> None:
    """At a console interval, record how many of the probe's experts changed since the last; see `RouterProbe`."""
    metrics = metrics_due()
    if metrics is None or not metrics.intervals.prints(metrics.iteration()):
        return
    found = probe.changes(hidden_states, valid_T, choose, metrics.iteration())
    if found is not None:
        metrics.sums.add_mean(layer_number, "expert_changes", *found)
