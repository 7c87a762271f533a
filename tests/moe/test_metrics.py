"""Metrics are token-weighted means over all ranks, per layer and overall."""

import torch

from megatron_compete.config import CompeteConfig
from megatron_compete.moe.competition import Competition
from megatron_compete.moe.metrics import CompetitionMetrics, install_metrics, record_competition
from tests.ranks import run_ranks


class Writer(dict):
    def add_scalar(self, name: str, value: float, iteration: int) -> None:
        self[name] = (float(value), iteration)


def report_on_rank(competing: bool) -> tuple[str, dict, str, dict]:
    """Rank r's layer 2 sees r + 1 tokens of agreement r; layer 5 only exists on rank 1."""
    from megatron.core.transformer.moe.moe_logging import get_moe_metrics_tracker

    from tests.moe.layouts import Layout, initialize

    initialize(Layout(world=2))
    rank = torch.distributed.get_rank()
    competition = Competition(CompeteConfig(rate=1.0 if competing else 0.0, max_active_layers=2), (2, 5), lambda: 0)
    install_metrics(competition, is_logged=lambda iteration: iteration % 2 == 0)
    value, zero = torch.tensor(float(rank)), torch.tensor(0.0)
    if competing:
        record_competition(2, rank + 1, distillation=value, diversity=zero, agreement=value)
        if rank == 1:
            record_competition(5, 4, distillation=zero, diversity=zero, agreement=torch.tensor(0.25))
    tracker = get_moe_metrics_tracker()
    assert isinstance(tracker, CompetitionMetrics)
    logged, unlogged = Writer(), Writer()
    common = dict(per_layer_logging=True, num_layers=6, track_names=[])
    text = tracker.report(1.0, 2, logged, **common)
    return text, logged, tracker.report(1.0, 3, unlogged, **common), unlogged


def test_means_are_weighted_by_tokens_over_ranks() -> None:
    for text, logged, _, _ in run_ranks(2, report_on_rank, True):
        assert logged["competition/active-layers"] == (2.0, 2)
        layer_2, layer_5 = (1 * 0.0 + 2 * 1.0) / 3, 0.25
        torch.testing.assert_close(logged["competition/agreement/layer-2"][0], layer_2)
        torch.testing.assert_close(logged["competition/agreement/layer-5"][0], layer_5)
        torch.testing.assert_close(logged["competition/agreement"][0], (layer_2 + layer_5) / 2)
        assert text == " competing layers: 2 | agreement: 0.458 |"


def test_steps_without_logging_or_competition_report_nothing() -> None:
    for _, _, text, scalars in run_ranks(2, report_on_rank, True):
        assert text == "" and scalars == {}
    for text, scalars, _, _ in run_ranks(2, report_on_rank, False):
        assert text == "" and scalars == {}
