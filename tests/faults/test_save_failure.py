"""A checkpoint that cannot be written: all ranks notice, the older ones survive, the run goes on or stops."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_compete.report.scalars import read_scalars
from tests.faults.damage import TRACKER
from tests.faults.injected import (
    RUN,
    assert_goes_on,
    fail_on_write,
    failing,
    full_disk,
    losses,
    tell_at_step,
    time_is_up_at_step,
    train,
)

pytestmark = pytest.mark.faults

KINDS = ("sync",)
"""Asynchronous saves need a GPU."""


def flags(folder: Path, kind: str = "sync") -> str:
    return f"{RUN} --save {folder}/ckpt --load {folder}/ckpt"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_cannot_write_and_the_run_goes_on(rank: int, kind: str, tmp_path: Path, undisturbed: Path) -> None:
    train(
        2,
        f"{flags(tmp_path, kind)} --on-save-failure continue --tensorboard-dir {tmp_path}/run",
        (full_disk, (rank, 4, 6)),
    )
    assert losses(tmp_path / "run") == losses(undisturbed)
    assert read_scalars(tmp_path / "run")["checkpoint/failed-saves"] == {4: 1.0}
    assert sorted(path.name for path in (tmp_path / "ckpt").glob("iter_*")) == [
        "iter_0000002",
        "iter_0000006",
        "iter_0000008",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_the_run_stops_and_the_older_checkpoint_survives(kind: str, tmp_path: Path, undisturbed: Path) -> None:
    said = failing(2, flags(tmp_path, kind), (full_disk, (1, 4, 100)))
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "saving iteration 4 failed" in errors[0] and "of iteration 2" in errors[0]
    assert "rank 1: [Errno 27] File too large" in errors[0]
    train(2, f"{flags(tmp_path)} --tensorboard-dir {tmp_path}/resumed")
    assert_goes_on(tmp_path / "resumed", undisturbed, after=2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [".metadata", "metadata.json", "tracker"])
def test_what_rank_0_writes_last(name: str, kind: str, tmp_path: Path, undisturbed: Path) -> None:
    """Upstream the other ranks would wait here until the communication times out."""
    train(
        2,
        f"{flags(tmp_path, kind)} --on-save-failure continue --tensorboard-dir {tmp_path}/run",
        (fail_on_write, (name, 4)),
    )
    assert losses(tmp_path / "run") == losses(undisturbed)
    assert read_scalars(tmp_path / "run")["checkpoint/failed-saves"] == {4: 1.0}
    assert not (tmp_path / "ckpt/iter_0000004").exists()
    assert (tmp_path / "ckpt" / TRACKER).read_text() == "8"


def test_the_last_save_fails(tmp_path: Path, undisturbed: Path) -> None:
    """Even a run that goes on does not claim to have finished."""
    said = failing(2, f"{flags(tmp_path)} --on-save-failure continue", (full_disk, (1, 8, 100)))
    assert "error: training ended, but its last checkpoint is not saved" in said and "SystemExit: 2" in said
    train(2, f"{flags(tmp_path)} --tensorboard-dir {tmp_path}/resumed")
    assert_goes_on(tmp_path / "resumed", undisturbed, after=6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["signal", "interval", "duration"])
def test_the_save_before_leaving_fails(way: str, kind: str, tmp_path: Path, undisturbed: Path) -> None:
    """Whichever way a run leaves, it does not claim to have saved."""
    leaving = {
        "signal": ("--exit-signal-handler", (tell_at_step, (0, 3))),
        "interval": ("--exit-interval 3", (tell_at_step, (0, 99))),
        "duration": ("--exit-duration-in-mins 1", (time_is_up_at_step, (3,))),
    }[way]
    said = failing(
        2,
        f"{flags(tmp_path, kind)} --on-save-failure continue {leaving[0]}",
        (in_run_folder, (str(tmp_path),)),
        (full_disk, (1, 3, 100)),
        leaving[1],
    )
    assert "error: training ended, but its last checkpoint is not saved" in said and "SystemExit: 2" in said
    assert (tmp_path / "outcomes/0").read_text().startswith("refused\ntraining ended, but its last checkpoint")
    train(2, f"{flags(tmp_path)} --tensorboard-dir {tmp_path}/resumed")
    assert_goes_on(tmp_path / "resumed", undisturbed, after=2)


def in_run_folder(folder: str) -> None:
    """As the batch script sets it; the fork server has its own environment."""
    os.environ.update(COMPETE_RUN=folder, COMPETE_ATTEMPT="0")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four megabytes: room for two checkpoints and not for three."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk: Path, tmp_path: Path, undisturbed: Path) -> None:
    said = failing(2, f"{RUN} --save {small_disk}/ckpt --tensorboard-dir {tmp_path}/first")
    assert "No space left on device" in said and "SystemExit: 2" in said
    assert "error: " in said and "the newest checkpoint is of iteration 4" in said
    kept = int((small_disk / "ckpt" / TRACKER).read_text())
    train(2, f"{RUN} --save {tmp_path}/ckpt --load {small_disk}/ckpt --tensorboard-dir {tmp_path}/resumed")
    assert_goes_on(tmp_path / "resumed", undisturbed, after=kept)
