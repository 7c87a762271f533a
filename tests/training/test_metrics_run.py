"""The metrics of a real run over pipeline stages and expert parallel ranks."""

from pathlib import Path

import pytest

from megatron_compete.moe.metrics_table import RESPONSE_METRICS, ROUTING_METRICS
from megatron_compete.report.scalars import Scalars, read_scalars
from megatron_compete.schedule import CompetitionSchedule
from tests.schedule.draws import slots
from tests.training.runs import train

STEPS, INTERVAL, LAYERS, EXPERTS = 6, 2, 4, 4
RATE, SEED = 0.2, 35  # something competes at the first and the last logged step, nothing between
LOGGED = set(range(INTERVAL, STEPS + 1, INTERVAL))
FLAGS = (
    f"--train-iters {STEPS} --log-interval {INTERVAL} --tensorboard-log-interval {INTERVAL} --moe-per-layer-logging "
    f"--pipeline-model-parallel-size 2 --expert-model-parallel-size 2 --compete-rate {RATE} --compete-seed {SEED}"
)


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Scalars:
    folder = tmp_path_factory.mktemp("metrics")
    train(4, f"{FLAGS} --tensorboard-dir {folder}")
    return read_scalars(folder)


def with_layers(tag: str, layers: range = range(1, LAYERS + 1)) -> list[str]:
    return [tag, *(f"{tag}/layer-{number}" for number in layers)]


def test_routing_is_logged_on_every_logged_step_and_no_other(logged: Scalars) -> None:
    for metric in ROUTING_METRICS:
        first = INTERVAL if metric.tag == "moe/expert-change-rate" else 0  # it needs an earlier choice
        for tag in with_layers(metric.tag):
            assert set(logged[tag]) == {step for step in LOGGED if step > first}, tag


def test_competition_is_logged_where_it_happened(logged: Scalars) -> None:
    table = CompetitionSchedule(LAYERS, RATE, 2, "balanced", slots(2, layers=2), seed=SEED).table(0, STEPS)
    assert logged["competition/active-layers"] == {step: table[step - 1].sum() for step in LOGGED}
    for metric in RESPONSE_METRICS[1:]:
        assert set(logged[metric.tag]) == {step for step in LOGGED if table[step - 1].any()}, metric.tag
        for layer in range(1, LAYERS + 1):
            steps = {step for step in LOGGED if table[step - 1, layer - 1]}
            assert set(logged.get(f"{metric.tag}/layer-{layer}", {})) == steps
    assert not any(name.startswith("competition/active-layers/") for name in logged)


def test_values_are_of_their_kind(logged: Scalars) -> None:
    for suffix in ("", *(f"/layer-{number}" for number in range(1, LAYERS + 1))):
        series = (logged[f"moe/{name}{suffix}"] for name in ("load-min", "load-max", "load-std", "dead-experts"))
        for least, most, spread, dead in zip(*(scalars.values() for scalars in series), strict=True):
            assert 0.0 <= least <= 1.0 <= most <= EXPERTS
            assert 0.0 < spread <= most - least
            assert dead == int(dead) and (dead > 0) == (least == 0)
        assert all(0.0 < value <= 1.3863 for value in logged[f"moe/router-entropy{suffix}"].values())  # ln 4
        assert all(0.0 <= value <= 1.0 for value in logged[f"moe/expert-change-rate{suffix}"].values())


def test_model_values_follow_from_the_layers(logged: Scalars) -> None:
    for metric in ROUTING_METRICS:
        of_model, *of_layers = (logged[tag] for tag in with_layers(metric.tag))
        for step, value in of_model.items():
            assert value == pytest.approx(metric.of_model([layer[step] for layer in of_layers]), abs=1e-6)


def test_routing_is_logged_at_rate_0_too(tmp_path: Path) -> None:
    train(1, f"--train-iters 2 --compete-rate 0 --log-interval 2 --tensorboard-dir {tmp_path}")
    logged = read_scalars(tmp_path)
    assert all(set(logged[metric.tag]) == {1, 2} for metric in ROUTING_METRICS[:-2])
    assert set(logged["moe/router-entropy"]) == {2}
    assert not any(name.startswith("competition/") for name in logged)
