"""Experts per token in TensorBoard, wandb and on the console, where a router may give a token any number.

Two runs are at equal cost only where these are equal. The scalar `experts_per_token` is Megatron's kind of metric: mean
over tokens, microbatches, ranks and MoE layers of the logged step; each layer's own with `--moe-per-layer-logging`. In a
vision-language model microbatches of text alone do not count for layers of tower and projector.
"""

from typing import Any

import torch
from megatron.core.transformer.moe.moe_logging import (
    MoEMetricsTracker,
    get_moe_metrics_tracker,
    set_moe_metrics_tracker,
)
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor

from megatron_compete.moe.metrics import CountedTracker

EXPERTS_PER_TOKEN = "experts_per_token"
PASSES = "passes of experts_per_token"
"""Microbatches that a layer recorded; summed as the metric is, and not logged."""


class VariableMetrics(CountedTracker):
    """Megatron's MoE tracker, that reports experts per token beside what the trainer asks for."""

    microbatches = 1.0
    """Of the step that is reported, by which the tracker divides."""

    def report(self, loss_scale: float, *args: Any, track_names: list[str] | None = None, **kwargs: Any) -> str:
        """As upstream's; called once a step on every rank by `training_log`."""
        self.microbatches = 1.0 / loss_scale
        return super().report(loss_scale, *args, track_names=[*(track_names or []), EXPERTS_PER_TOKEN], **kwargs)

    def ensure_initialized(self, name: str, num_layers: int, device: Any = None) -> None:
        """The counted tracker's; every rank has the count of passes wherever it has what is divided by it."""
        super().ensure_initialized(name, num_layers, device)
        if name == EXPERTS_PER_TOKEN:
            super().ensure_initialized(PASSES, num_layers, device)

    def _sync_metrics(self, metric_names: list[str], *args: Any, **kwargs: Any) -> None:
        super()._sync_metrics([*metric_names, PASSES], *args, **kwargs)
        if EXPERTS_PER_TOKEN in self.metrics:
            passes = self.metrics[PASSES].values
            self.metrics[EXPERTS_PER_TOKEN].values *= torch.where(passes > 0, self.microbatches / passes, 0.0)


def install_variable_metrics() -> None:
    """Make Megatron's trainer report experts per token, of as many layers as it was told to count; another tracker than
    Megatron's, or that which counts layers, stays."""
    tracker = get_moe_metrics_tracker()
    if type(tracker) in (MoEMetricsTracker, CountedTracker):
        set_moe_metrics_tracker(VariableMetrics(getattr(tracker, "counts", None)))


@torch.no_grad()
def record_experts_per_token(router: TopKRouter, routing_map_TE: Tensor, valid_T: Tensor | None) -> None:
    """Record one microbatch of a training pass, over its valid tokens."""
    tracker = get_moe_metrics_tracker()
    if not isinstance(tracker, VariableMetrics) or router.layer_number is None:
        return
    counts_T = routing_map_TE.sum(dim=-1).float()
    num_tokens: int | Tensor = max(len(counts_T), 1)
    if valid_T is not None:
        counts_T, num_tokens = counts_T * valid_T, valid_T.sum().clamp_min(1)
    config = router.config
    for name, value in ((EXPERTS_PER_TOKEN, counts_T.sum() / num_tokens), (PASSES, torch.ones_like(counts_T.sum()))):
        tracker.record(
            name,
            value,
            router.layer_number + (config.num_layers if router.is_mtp_layer else 0),
            config.num_layers + (config.mtp_num_layers or 0),
            avg_group=router.tp_cp_group,
        )
