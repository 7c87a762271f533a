"""Experts per token in TensorBoard, wandb and on the console, where a router may give a token any number.

Two runs are at equal cost only where these are equal. The scalar `experts_per_token` is Megatron's kind of metric: mean
over tokens, microbatches, ranks and MoE layers of the logged step; each layer's own with `--moe-per-layer-logging`.
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

EXPERTS_PER_TOKEN = "experts_per_token"


class VariableMetrics(MoEMetricsTracker):
    """Megatron's MoE tracker, that reports experts per token beside what the trainer asks for."""

    def report(self, *args: Any, track_names: list[str] | None = None, **kwargs: Any) -> str:
        """As upstream's; called once a step on every rank by `training_log`."""
        return super().report(*args, track_names=[*(track_names or []), EXPERTS_PER_TOKEN], **kwargs)


def install_variable_metrics() -> None:
    """Make Megatron's trainer report experts per token; another tracker than Megatron's stays."""
    if type(get_moe_metrics_tracker()) is MoEMetricsTracker:
        set_moe_metrics_tracker(VariableMetrics())


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
    tracker.record(
        EXPERTS_PER_TOKEN,
        counts_T.sum() / num_tokens,
        router.layer_number + (config.num_layers if router.is_mtp_layer else 0),
        config.num_layers + (config.mtp_num_layers or 0),
        avg_group=router.tp_cp_group,
    )
