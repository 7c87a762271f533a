"""Ranks agree on the schedule, and a resumed run keeps it."""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.training import checkpointing

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig
from megatron_compete.moe.competition import Competition
from megatron_compete.report.scalars import read_scalars
from megatron_compete.resilience.resuming import schedule as schedule_module
from megatron_compete.resilience.resuming.schedule import check_agreement, continued, keep_schedule
from megatron_compete.schedule import CompetitionSchedule
from megatron_compete.schedule.balanced import StageChunk
from tests.ranks import run_ranks
from tests.schedule.draws import slots
from tests.training.runs import train

STEPS, MIDDLE = 8, 4
CONFIG = CompeteConfig(rate=0.2, max_active_layers=2)
Places = tuple[StageChunk, ...]
TWO_STAGES = slots(2, layers=2)


def competition(config: CompeteConfig = CONFIG, places: Places = TWO_STAGES) -> Competition:
    return Competition(config, (1, 2, 3, 4), lambda: 0, places)


def agree(own_config_of_rank: dict[int, CompeteConfig], places_of_rank: dict[int, Places]) -> str:
    """What the check says on this rank; empty if nothing."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    one = competition(own_config_of_rank.get(rank, CONFIG), places_of_rank.get(rank, TWO_STAGES))
    try:
        assert check_agreement([], one) == []
    except CompeteError as error:
        return str(error)
    return ""


def test_ranks_that_agree_go_on() -> None:
    assert run_ranks(3, agree, {}, {}) == ["", "", ""]


def test_ranks_that_differ_stop_with_the_values() -> None:
    other = dataclasses.replace(CONFIG, seed=5, rate=0.1)
    said = run_ranks(4, agree, {2: other, 3: other}, {})
    assert len(set(said)) == 1
    assert "--compete-rate is 0.2 on rank 0, 0.1 on rank 2" in said[0]
    assert "--compete-seed is 1234 on rank 0, 5 on rank 2" in said[0]
    assert "policy" not in said[0]
    assert "pipeline layout" in run_ranks(2, agree, {}, {1: slots(4)})[0]


def draw_otherwise(differing_rank: int) -> str:
    """As with another version of numpy on one rank."""
    torch.distributed.init_process_group("gloo")
    one = competition()
    if torch.distributed.get_rank() == differing_rank:
        one.schedule._windows[1] = ~one.schedule._window(1)
    try:
        check_agreement([], one)
    except CompeteError as error:
        return str(error)
    return ""


def test_other_random_numbers_are_noticed() -> None:
    said = run_ranks(2, draw_otherwise, 1)
    assert all("install one version of numpy on all nodes" in text for text in said)


def settings_of(config: CompeteConfig, places: Places = TWO_STAGES) -> dict:
    return CompetitionSchedule.of(config, places).settings()


def test_a_change_of_layout_keeps_policy_and_stages() -> None:
    saved = settings_of(CONFIG)
    assert continued(saved, settings_of(CONFIG, slots(1, layers=4)), CONFIG) == saved
    assert continued(saved, settings_of(CONFIG, slots(4)), CONFIG) == saved


@pytest.mark.parametrize(
    "change",
    [
        dict(rate=0.3),
        dict(max_active_layers=3),
        dict(seed=1),
        dict(warmup_steps=7),
        dict(policy="shifted"),
        dict(rate_decay="linear", rate_decay_steps=10, rate_floor=0.1),
    ],
    ids=str,
)
def test_other_settings_are_refused(change: dict) -> None:
    config = dataclasses.replace(CONFIG, **change)
    flag = {"max_active_layers": "--compete-max-active-layers"}.get(next(iter(change)), next(iter(change)))
    with pytest.raises(CompeteError, match="--compete-override-schedule") as refused:
        continued(settings_of(CONFIG), settings_of(config), config)
    assert flag.replace("_", "-") in str(refused.value)


def resumed(monkeypatch: pytest.MonkeyPatch, checkpoint: argparse.Namespace, **flags: bool) -> argparse.Namespace:
    """This run's arguments after it has looked at the checkpoint's."""
    monkeypatch.setattr(checkpointing, "check_checkpoint_args", lambda checkpoint_args: None)
    monkeypatch.setattr(schedule_module, "_check_equal", lambda competition: None)  # there is one rank
    args = argparse.Namespace(**flags)
    with keep_schedule(competition(), args):
        checkpointing.check_checkpoint_args(checkpoint)
    return args


def written() -> argparse.Namespace:
    """What a checkpoint keeps."""
    args = argparse.Namespace()
    with keep_schedule(competition(), args):
        return args


def test_a_checkpoint_of_another_numpy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = written()
    assert resumed(monkeypatch, checkpoint) == checkpoint
    draw = CompetitionSchedule._draw
    monkeypatch.setattr(CompetitionSchedule, "_draw", lambda self, window: draw(self, window + 1))
    with pytest.raises(CompeteError, match=f"numpy {np.__version__} draws another table.*--compete-override-schedule"):
        resumed(monkeypatch, checkpoint)
    drawn_here = resumed(monkeypatch, checkpoint, compete_override_schedule=True).compete_schedule_drawn
    assert drawn_here["digest"] != checkpoint.compete_schedule_drawn["digest"]


def test_a_checkpoint_without_a_digest_goes_on_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = written()
    del checkpoint.compete_schedule_drawn
    assert resumed(monkeypatch, checkpoint).compete_schedule == checkpoint.compete_schedule
    assert "holds no digest of its schedule" in capsys.readouterr().out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two stages, with a checkpoint in its middle."""
    folder = tmp_path_factory.mktemp("keeping")
    train(
        2,
        f"--pipeline-model-parallel-size 2 --train-iters {STEPS} --save {folder}/ckpt --save-interval {MIDDLE} "
        f"--tensorboard-dir {folder}/whole",
    )
    (folder / "ckpt/latest_checkpointed_iteration.txt").write_text(str(MIDDLE))
    return folder


def active_layers(folder: Path) -> dict[int, float]:
    return read_scalars(folder)["competition/active-layers"]


def test_one_rank_goes_on_with_the_table_of_two_stages(folder: Path) -> None:
    train(1, f"--train-iters {STEPS} --load {folder}/ckpt --tensorboard-dir {folder}/one")
    whole, one = active_layers(folder / "whole"), active_layers(folder / "one")
    assert one == {step: layers for step, layers in whole.items() if step > MIDDLE}
    shifted = CompetitionSchedule(4, 0.4, 2).table(MIDDLE, STEPS).sum(axis=1)
    assert list(one.values()) != shifted.tolist()  # what one stage would have drawn by itself


def test_another_rate_is_refused_unless_overridden(folder: Path) -> None:
    flags = f"--compete-rate 0.1 --train-iters {STEPS} --load {folder}/ckpt"
    with pytest.raises(AssertionError) as failure:
        train(1, flags)
    errors = [line for line in str(failure.value).splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "--compete-rate 0.4 -> 0.1" in errors[0] and "--compete-override-schedule" in errors[0]
    train(1, f"{flags} --compete-override-schedule --tensorboard-dir {folder}/overridden")
    expected = CompetitionSchedule(4, 0.1, 2).table(MIDDLE, STEPS).sum(axis=1)
    assert list(active_layers(folder / "overridden").values()) == expected.tolist()


def test_a_capped_rate_trains(folder: Path) -> None:
    train(1, f"--compete-rate 0.9 --compete-cap-rate --train-iters 3 --tensorboard-dir {folder}/capped")
    assert set(active_layers(folder / "capped").values()) == {2.0}
