"""Metrics know how they are reduced: over microbatches and ranks, experts, and layers."""

import dataclasses
import math
from collections.abc import Callable
from statistics import pstdev
from typing import Any

import pytest
import torch
from megatron.core.transformer.moe.moe_logging import MoEMetricsTracker, get_moe_metrics_tracker
from torch import Tensor

from megatron_compete.config import CompeteConfig
from megatron_compete.moe.competition import Competition
from megatron_compete.moe.metrics import (
    CompetitionMetrics,
    LogIntervals,
    install_metrics,
    metrics_due,
    record_changes,
    record_competition,
    record_routing,
)
from megatron_compete.moe.metrics_probe import PROBE_TOKENS, RouterProbe
from megatron_compete.moe.metrics_table import AGREEMENT, RESPONSE_METRICS, ROUTING_METRICS, LayerSums, Metric
from tests.ranks import run_rank, run_ranks

EXPERTS, LAYERS = 3, (2, 5)
EVERY_SECOND = LogIntervals(scalars=2, console=2)


class Writer(dict[str, tuple[float, int]]):
    """Takes the place of TensorBoard's writer and of a wandb run."""

    def add_scalar(self, name: str, value: float, iteration: int) -> None:
        self[name] = (value, iteration)

    def log(self, values: dict[str, float], iteration: int) -> None:
        self.update({name: (value, iteration) for name, value in values.items()})


def install(rate: float = 1.0, step: int = 1) -> CompetitionMetrics:
    """The tracker of a model whose layers 2 and 5 compete, in `step`."""
    competition = Competition(CompeteConfig(rate=rate, max_active_layers=2), LAYERS, lambda: step)
    install_metrics(competition, EXPERTS, EVERY_SECOND)
    tracker = get_moe_metrics_tracker()
    assert isinstance(tracker, CompetitionMetrics)
    return tracker


def routing(*experts: int) -> tuple[Callable[[], Tensor], Tensor]:
    """Even probabilities, and one expert for each token."""
    routing_map_TE = torch.nn.functional.one_hot(torch.tensor(experts), EXPERTS).bool()
    return lambda: torch.full((len(experts), EXPERTS), 1 / EXPERTS), routing_map_TE


def report_on_rank(rate: float) -> dict[str, Any]:
    """Rank r sees r + 1 tokens of agreement r in layer 2; layer 5 is on rank 1 alone."""
    from tests.moe.layouts import Layout, initialize

    initialize(Layout(world=2))
    tracker, rank = install(rate), torch.distributed.get_rank()
    collectives = []
    all_reduce = torch.distributed.all_reduce
    torch.distributed.all_reduce = lambda tensor, *a, **k: collectives.append(tensor.shape) or all_reduce(tensor)
    if rate:
        record_competition(2, rank + 1, distillation=torch.tensor(0.5), agreement=torch.tensor(float(rank)))
    record_routing(2, *routing(*[(0, 0, 0), (0, 0, 1)][rank]), valid_T=None)
    record_routing(2, *routing(1, 2), valid_T=torch.tensor([True, False]))
    if rank == 1:
        record_routing(5, *routing(0, 1, 2), valid_T=None)
    writer, run, unlogged = Writer(), Writer(), Writer()
    common: dict[str, Any] = dict(per_layer_logging=True, num_layers=6, track_names=[])
    text = tracker.report(1.0, 2, writer, wandb_writer=run, **common)
    silence = tracker.report(1.0, 3, unlogged, **common)
    again = Writer()
    tracker.report(1.0, 4, again, **common)
    return dict(text=text, writer=writer, run=run, silence=silence, unlogged=unlogged, again=again, calls=collectives)


@pytest.fixture(scope="module")
def competing() -> list[dict[str, Any]]:
    return run_ranks(2, report_on_rank, 1.0)


def test_means_are_weighted_by_tokens_over_ranks(competing: list[dict[str, Any]]) -> None:
    for rank in competing:
        assert rank["writer"]["competition/active-layers"] == (1.0, 2)
        assert rank["writer"]["competition/agreement/layer-2"] == (pytest.approx(2 / 3), 2)
        assert rank["writer"]["competition/agreement"] == (pytest.approx(2 / 3), 2)
        assert rank["writer"]["competition/distillation-loss"] == (0.5, 2)
        assert "competition/agreement/layer-5" not in rank["writer"]
        assert rank["run"] == rank["writer"]


def test_loads_are_taken_after_the_sum_over_ranks(competing: list[dict[str, Any]]) -> None:
    counts = [5, 3, 0]  # layer 2: five tokens to expert 0, three to expert 1, padding not counted
    expected = {
        "moe/load-max/layer-2": 5 * 3 / 8, "moe/load-min/layer-2": 0.0, "moe/load-std/layer-2": pstdev(counts) * 3 / 8,
        "moe/dead-experts/layer-2": 1.0, "moe/router-entropy/layer-2": math.log(3),
        "moe/load-max/layer-5": 1.0, "moe/load-min/layer-5": 1.0, "moe/load-std/layer-5": 0.0,
        "moe/dead-experts/layer-5": 0.0, "moe/router-entropy/layer-5": math.log(3),
        "moe/load-max": 5 * 3 / 8, "moe/load-min": 0.0, "moe/load-std": pstdev(counts) * 3 / 16,
        "moe/dead-experts": 1.0, "moe/router-entropy": math.log(3),
    }  # fmt: skip
    for rank in competing:
        found = {name: value for name, (value, _) in rank["writer"].items() if name.startswith("moe/")}
        assert found == pytest.approx(expected)
        assert rank["text"] == (
            " competing layers: 1 | agreement: 0.667 | expert load: 0.00 to 1.88 | dead experts: 1 |"
        )


def test_one_collective_at_logged_steps_and_none_at_others(competing: list[dict[str, Any]]) -> None:
    assert [rank["calls"] for rank in competing] == [competing[0]["calls"]] * 2
    assert len(competing[0]["calls"]) == 2  # iterations 2 and 4
    for rank in competing:
        assert rank["silence"] == "" and rank["unlogged"] == {}
        assert rank["again"] == {"competition/active-layers": (0.0, 4)}


def test_without_competition_routing_is_logged_alone() -> None:
    for rank in run_ranks(2, report_on_rank, 0.0):
        assert rank["text"] == " expert load: 0.00 to 1.88 | dead experts: 1 |"
        assert all(name.startswith("moe/") for name in rank["writer"])


def due() -> list[bool]:
    results = []
    for step in (0, 1):  # ends in iterations 1 and 2
        install(step=step)
        results.append(metrics_due() is not None)
    with torch.no_grad():
        results.append(metrics_due() is not None)
    return results


def test_records_only_passes_with_gradient_of_logged_steps() -> None:
    assert run_rank(due) == [False, True, False]


def logged_iterations(intervals: LogIntervals) -> list[int]:
    return [iteration for iteration in range(1, 13) if intervals.logs(iteration)]


def test_console_intervals_are_logged_too() -> None:
    intervals = LogIntervals(scalars=4, console=6)
    assert logged_iterations(intervals) == [4, 6, 8, 12]
    assert [iteration for iteration in range(1, 13) if intervals.prints(iteration)] == [6, 12]


def recorded_columns(console: int) -> dict[str, bool]:
    """What one microbatch of a normal step leaves, where scalars are logged and a line is printed or not."""
    competition = Competition(CompeteConfig(rate=0.0), LAYERS, lambda: 1)
    install_metrics(competition, EXPERTS, LogIntervals(scalars=1, console=console))
    record_routing(2, *routing(0, 1), valid_T=None)
    metrics = metrics_due()
    assert metrics is not None
    return {q.name: q.recorded(metrics.sums._cell(2, q.name)) for q in {m.quantity for m in ROUTING_METRICS}}


def test_counts_at_every_logged_step_and_entropy_at_printed_ones() -> None:
    assert run_rank(recorded_columns, 2) == dict(expert_tokens=True, router_entropy=True, expert_changes=False)
    assert run_rank(recorded_columns, 3) == dict(expert_tokens=True, router_entropy=False, expert_changes=False)


def test_nothing_recorded_is_not_zero_and_a_nan_is_not_hidden() -> None:
    sums = LayerSums(ROUTING_METRICS + RESPONSE_METRICS, LAYERS, EXPERTS)
    assert sums.packed.shape == (2, EXPERTS + 2 * 7)
    assert sums.scalars(per_layer=True) == {"competition/active-layers": 0.0}
    sums.add_mean(2, "distillation", torch.tensor(math.nan), 4)
    sums.add_mean(5, "distillation", torch.tensor(1.0), torch.tensor(0))  # a microbatch of padding
    found = sums.scalars(per_layer=False)
    assert found["competition/active-layers"] == 1.0 and math.isnan(found["competition/distillation-loss"])


def test_a_nan_is_not_passed_over_by_the_largest_and_the_least() -> None:
    broken = Metric("broken", AGREEMENT, lambda sums: sums[0], of_model=max)
    for of_model in (max, min):
        metrics = (dataclasses.replace(broken, of_model=of_model),)
        for values in ((math.nan, 1.0), (1.0, math.nan)):
            sums = LayerSums(metrics, LAYERS, EXPERTS)
            for layer, value in zip(LAYERS, values):
                sums.add_mean(layer, AGREEMENT.name, torch.tensor(value), 1)
            assert math.isnan(sums.scalars(per_layer=False)["broken"])


def probed(console: int) -> bool:
    """Whether a logged step asks the probe, whose routing costs."""
    competition = Competition(CompeteConfig(rate=0.0), LAYERS, lambda: 1)
    install_metrics(competition, EXPERTS, LogIntervals(scalars=1, console=console))
    probe = RouterProbe()
    record_changes(2, probe, torch.randn(3, 1, 8), None, lambda tokens: chosen(0, 1, 2))
    return probe.tokens is not None


def test_the_probe_is_asked_at_printed_steps() -> None:
    assert run_rank(probed, 2) and not run_rank(probed, 3)


def test_token_counts_beyond_fp32_are_exact() -> None:
    sums = LayerSums(ROUTING_METRICS, LAYERS, EXPERTS)
    for _ in range(2):
        sums.add_counts(2, "expert_tokens", torch.tensor([2**25 + 1, 1, 0]))
    assert sums.packed[0, :EXPERTS].tolist() == [2**26 + 2, 2, 0]
    assert sums.scalars(per_layer=False)["moe/dead-experts"] == 1.0


def chosen(*experts: int) -> Tensor:
    """Two of three experts for each token, the named one missing."""
    return ~torch.nn.functional.one_hot(torch.tensor(experts), EXPERTS).bool()


def test_probe_compares_with_the_choice_before() -> None:
    probe, hidden = RouterProbe(), torch.randn(3, 1, 8)
    inputs = []

    def choose(result: Tensor) -> Any:
        return lambda tokens: inputs.append(tokens) or result

    mask = torch.tensor([True, False, True])
    assert probe.changes(hidden, mask, choose(chosen(0, 1)), step=2) is None
    assert probe.changes(hidden, mask, choose(chosen(0, 2)), step=2) is None  # the step's second microbatch
    share, tokens = probe.changes(hidden + 1, None, choose(chosen(0, 2)), step=4) or (None, None)
    assert (share, tokens) == (0.25, 2)  # one of two experts, at one of two tokens
    assert len(inputs) == 2 and all(torch.equal(tokens, hidden[[0, 2]]) for tokens in inputs)
    assert probe.state_dict() == {}


def test_probe_keeps_its_first_tokens_alone() -> None:
    probe = RouterProbe()
    probe.changes(torch.randn(PROBE_TOKENS, 2, 4), None, lambda tokens: tokens[:, 0] > 0, step=1)
    assert probe.tokens is not None and probe.tokens.shape == (PROBE_TOKENS, 1, 4)


def test_megatrons_own_metrics_are_recorded_as_ever() -> None:
    """Its router records balance losses by calling the tracker's methods; none but these may mean something else."""
    own = {name for name in vars(CompetitionMetrics) if callable(getattr(MoEMetricsTracker, name, None))}
    assert {name for name in own if not name.startswith("_")} == {"report"}
