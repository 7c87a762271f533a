"""What a competition did, in TensorBoard and on the console.

Layers record sums over tokens; at a logged step one all-reduce over all ranks gives token-weighted means per layer,
whatever the layout: pipeline stages hold different layers, all other ranks different tokens. Steps that are not
logged, and steps at which the schedule lets nothing compete, cost no communication.
"""

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.transformer.moe.moe_logging import (
    MoEMetricsTracker,
    get_moe_metrics_tracker,
    set_moe_metrics_tracker,
)
from torch import Tensor

from megatron_compete.moe.competition import Competition

METRICS = {"distillation": "distillation-loss", "diversity": "diversity-loss", "agreement": "agreement"}
"""Token means that a competing layer records, with their TensorBoard names (under `competition/`). agreement is the
share of a token's winners that the router would have chosen too."""


class CompetitionMetrics(MoEMetricsTracker):
    """Megatron's MoE tracker, with the competition's metrics beside its own.

    Args:
        competition: whose layers report.
        is_logged: whether the metrics of the step that ends in this iteration (from 1) are wanted; must answer alike
            on all ranks.
    """

    def __init__(self, competition: Competition, is_logged: Callable[[int], bool]) -> None:
        super().__init__()
        self.competition = competition
        self.is_logged = is_logged
        self._row = {number: row for row, number in enumerate(competition.layer_numbers)}
        device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
        self._sums = torch.zeros(len(self._row), 1 + len(METRICS), device=device)  # [layers, tokens and metrics]

    def record_layer(self, layer_number: int, num_tokens: int | Tensor, values: dict[str, Tensor]) -> None:
        """Add one microbatch of one layer: `values` are means over `num_tokens` tokens."""
        row = self._sums[self._row[layer_number]]
        row[0] += num_tokens
        row[1:] += num_tokens * torch.stack([values[name].detach() for name in METRICS])

    def report(self, loss_scale: float, iteration: int, writer: Any = None, *args: Any, **kwargs: Any) -> str:
        """Megatron's report, then ours; called once a step on every rank by `training_log`."""
        text = super().report(loss_scale, iteration, writer, *args, **kwargs)
        if self.competition.config.enabled and self.is_logged(iteration):
            text += self._report_competition(iteration, writer, bool(kwargs.get("per_layer_logging", False)))
        self._sums.zero_()
        return text

    def _report_competition(self, iteration: int, writer: Any, per_layer: bool) -> str:
        if self.competition.any_active() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self._sums)
        sums = self._sums.tolist()
        competing = [row for row, (tokens, *_) in enumerate(sums) if tokens > 0]
        means = {row: [total / sums[row][0] for total in sums[row][1:]] for row in competing}
        scalars = {"competition/active-layers": float(len(competing))}
        for column, name in enumerate(METRICS.values()):
            if competing:
                scalars[f"competition/{name}"] = sum(mean[column] for mean in means.values()) / len(competing)
            if per_layer:
                for row, mean in means.items():
                    scalars[f"competition/{name}/layer-{self.competition.layer_numbers[row]}"] = mean[column]
        if writer is not None:
            for name, value in scalars.items():
                writer.add_scalar(name, value, iteration)
        agreement = f" agreement: {scalars['competition/agreement']:.3f} |" if competing else ""
        return f" competing layers: {len(competing)} |{agreement}"


def install_metrics(competition: Competition, is_logged: Callable[[int], bool]) -> None:
    """Make Megatron's trainer report this competition's metrics."""
    set_moe_metrics_tracker(CompetitionMetrics(competition, is_logged))


def record_competition(layer_number: int, num_tokens: int | Tensor, **values: Tensor) -> None:
    """Record one microbatch's means; without an installed `CompetitionMetrics` nothing is kept."""
    tracker = get_moe_metrics_tracker()
    if isinstance(tracker, CompetitionMetrics):
        tracker.record_layer(layer_number, num_tokens, values)
