"""Recipes that compete in Megatron-Bridge's real trainer: what is logged, what a resumed run does, what is exported."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from megatron_compete.config import CompeteConfig
from megatron_compete.report.scalars import Scalars, read_scalars
from megatron_compete.schedule import CompetitionSchedule
from megatron_compete.schedule.balanced import StageChunk
from tests.bridge import jobs
from tests.ranks import run_rank, run_ranks

pytestmark = pytest.mark.bridge

STEPS, MIDDLE = 20, 10
SETTINGS = CompeteConfig(rate=0.4, max_active_layers=2)
ONE_STAGE: tuple[StageChunk, ...] = ((0, 0),) * 4
TWO_STAGES: tuple[StageChunk, ...] = ((0, 0), (0, 0), (1, 0), (1, 0))


def active(places: tuple[StageChunk, ...], settings: CompeteConfig = SETTINGS) -> list[float]:
    """Layers that compete at each step, by the schedule itself."""
    return CompetitionSchedule.of(settings, places).table(0, STEPS).sum(axis=1).astype(float).tolist()


def check_logs(scalars: Scalars, expected: list[float], first: int = 0) -> None:
    """Active layers are the schedule's at every step, and agreement is there when any competes."""
    steps = range(first + 1, STEPS + 1)
    assert scalars["competition/active-layers"] == {step: expected[step - 1] for step in steps}
    assert set(scalars["competition/agreement"]) == {step for step in steps if expected[step - 1] > 0}
    assert all(0.0 <= value <= 1.0 for value in scalars["competition/agreement"].values())
    assert set(scalars["lm loss"]) == set(steps) == set(scalars["load_balancing_loss"])


@pytest.fixture(scope="module")
def two_experts_ranks(hf: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run at EP=2."""
    folder = tmp_path_factory.mktemp("experts")
    assert run_ranks(2, jobs.train, hf, str(folder), {"expert_model_parallel_size": 2}, SETTINGS) == ["", ""]
    return folder


@pytest.fixture(scope="module")
def two_stages(hf: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run at PP=2."""
    folder = tmp_path_factory.mktemp("stages")
    assert run_ranks(2, jobs.train, hf, str(folder), {"pipeline_model_parallel_size": 2}, SETTINGS) == ["", ""]
    return folder


def test_expert_parallel_ranks_log_the_competition(two_experts_ranks: Path) -> None:
    scalars = read_scalars(two_experts_ranks / "tensorboard")
    check_logs(scalars, active(ONE_STAGE))
    losses = list(scalars["lm loss"].values())
    assert sum(losses[-5:]) < sum(losses[:5])


def test_pipeline_stages_log_the_competition(two_stages: Path) -> None:
    check_logs(read_scalars(two_stages / "tensorboard"), active(TWO_STAGES))
    assert active(TWO_STAGES) != active(ONE_STAGE)


def test_a_hybrid_recipe_logs_the_competition(tmp_path: Path) -> None:
    """Also where a stage has no experts: its ranks reduce as many numbers as the others."""
    settings = CompeteConfig(rate=0.5, max_active_layers=1)
    nowhere = {"save": None, "load": None}
    stages = {"pipeline_model_parallel_size": 2}
    assert run_ranks(2, jobs.train, jobs.HYBRID, str(tmp_path), stages, settings, STEPS, nowhere) == ["", ""]
    check_logs(read_scalars(tmp_path / "tensorboard"), active(ONE_STAGE[:2], settings))


def test_a_resumed_run_continues_the_schedule_in_another_layout(two_stages: Path, hf: str) -> None:
    where = {"load": str(two_stages / "checkpoints"), "ckpt_step": MIDDLE, "save": None}
    assert run_rank(jobs.train, hf, str(two_stages), {}, SETTINGS, STEPS, where, "resumed") == ""
    scalars = read_scalars(two_stages / "resumed")
    check_logs(scalars, active(TWO_STAGES), first=MIDDLE)
    whole = read_scalars(two_stages / "tensorboard")["lm loss"]
    assert scalars["lm loss"] == pytest.approx({step: whole[step] for step in range(MIDDLE + 1, STEPS + 1)}, rel=1e-4)


def test_another_schedule_is_refused_unless_overridden(two_stages: Path, hf: str) -> None:
    other = dataclasses.replace(SETTINGS, rate=0.3)
    where = {"load": str(two_stages / "checkpoints/iter_0000010"), "save": None}
    arguments = (hf, str(two_stages), {}, other, STEPS, where, "other")
    refused = run_rank(jobs.train, *arguments)
    assert "--compete-rate 0.4 -> 0.3" in refused
    assert run_rank(jobs.train, *arguments, True) == ""
    check_logs(read_scalars(two_stages / "other"), active(ONE_STAGE, other), first=MIDDLE)


def test_rate_zero_trains_the_stock_model(hf: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name, settings in (("stock", None), ("zero", CompeteConfig(rate=0.0, router_balance_coeff=0.0))):
        assert (
            run_rank(jobs.train, hf, str(tmp_path / "run"), {}, settings, 3, {"save": None, "load": None}, name) == ""
        )
    stock, zero = (read_scalars(tmp_path / "run" / name) for name in ("stock", "zero"))
    for name in ("lm loss", "grad-norm", "load_balancing_loss"):
        assert stock[name] == zero[name]


def test_bridge_exports_the_trained_model(two_experts_ranks: Path, hf: str) -> None:
    """The checkpoint's configuration names the recipe's own layers, so that Bridge's tools need nothing of ours."""
    checkpoints, exported = two_experts_ranks / "checkpoints", two_experts_ranks / "exported"
    for path in checkpoints.rglob("*.json"):
        assert "metadata" in path.name or json.loads(path.read_text())["settings"]["rate"] == SETTINGS.rate
    assert "megatron_compete.bridge.layers" not in (checkpoints / "iter_0000020/run_config.yaml").read_text()
    logits = run_rank(jobs.export, hf, str(checkpoints), str(exported))
    theirs = run_rank(transformers_logits, str(exported))
    untrained = run_rank(transformers_logits, hf)
    torch.testing.assert_close(theirs, logits, atol=1e-4, rtol=1e-4)
    assert (theirs - untrained).abs().max() > 0.01


def transformers_logits(folder: str) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model.eval()(jobs.some_tokens()).logits
