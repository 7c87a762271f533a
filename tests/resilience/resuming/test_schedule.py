"""A resumed run of Megatron's trainer keeps its schedule."""

import argparse
from pathlib import Path

import numpy as np
import pytest
from megatron.training import checkpointing

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig
from megatron_compete.moe.competition import Competition
from megatron_compete.report.scalars import read_scalars
from megatron_compete.resilience.resuming.schedule import keep_schedule
from megatron_compete.schedule import CompetitionSchedule
from megatron_compete.schedule.balanced import StageChunk
from tests.schedule.draws import slots
from tests.training.runs import train

STEPS, MIDDLE = 8, 4
CONFIG = CompeteConfig(rate=0.2, max_active_layers=2)
Places = tuple[StageChunk, ...]
TWO_STAGES = slots(2, layers=2)


def competition(config: CompeteConfig = CONFIG, places: Places = TWO_STAGES) -> Competition:
    return Competition(config, (1, 2, 3, 4), lambda: 0, places)


def resumed(monkeypatch: pytest.MonkeyPatch, checkpoint: argparse.Namespace, **flags: bool) -> argparse.Namespace:
    """This run's arguments after it has looked at the checkpoint's."""
    monkeypatch.setattr(checkpointing, "check_checkpoint_args", lambda checkpoint_args: None)
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
