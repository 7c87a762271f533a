"""Around a save: room for it, what is left of a failed one, and why any of it is needed."""

import inspect
import os
import queue
import shutil
from pathlib import Path

import pytest
from megatron.core.dist_checkpointing import serialization
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.msc_utils import maybe_msc
from megatron.core.rerun_state_machine import RerunMode
from megatron.training import checkpointing

from megatron_compete.checkpoint.location import TRACKER
from megatron_compete.resilience.saving.files import AtomicTracker, TrackerFailed, clear_up, make_room
from tests.training.runs import train


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One checkpoint, of iteration 1."""
    folder = tmp_path_factory.mktemp("saving") / "ckpt"
    train(1, f"--train-iters 1 --save-interval 1 --save {folder}")
    return folder


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "ckpt")) / "iter_0000001"


def names(checkpoint: Path) -> set[str]:
    return {path.name for path in checkpoint.parent.iterdir() if path.is_dir()}


def test_an_unfinished_save_is_set_aside(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkpoint / "metadata.json").unlink()
    make_room(checkpoint)
    assert names(checkpoint) == {"iter_0000001", "iter_0000001.damaged"} and not any(checkpoint.iterdir())
    assert "is an unfinished save, set aside as iter_0000001.damaged" in capsys.readouterr().out


def test_a_whole_one_survives_a_save_that_fails(checkpoint: Path) -> None:
    files = {path.name for path in checkpoint.iterdir()}
    make_room(checkpoint)
    assert names(checkpoint) == {"iter_0000001", "iter_0000001.replaced"}
    (checkpoint / "half").touch()
    assert clear_up(checkpoint).endswith("the newest checkpoint is of iteration 1")
    assert names(checkpoint) == {"iter_0000001"} and {path.name for path in checkpoint.iterdir()} == files


def test_nothing_in_the_way(tmp_path: Path) -> None:
    make_room(tmp_path / "iter_0000001")
    make_room(tmp_path / "iter_0000001")
    assert names(tmp_path / "iter_0000001") == {"iter_0000001"}
    assert clear_up(tmp_path / "iter_0000001").endswith("there is no earlier checkpoint")


def test_the_tracker_is_replaced_or_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_compete.resilience.saving.files.get_args", lambda: None)
    files, path = AtomicTracker(maybe_msc), str(tmp_path / TRACKER)
    with files.open(path, "w") as tracker:
        tracker.write("1")
        assert not os.path.exists(path)
    with files.open(path, "r") as tracker:
        assert tracker.read() == "1"
    with pytest.raises(KeyboardInterrupt), files.open(path, "w") as tracker:
        tracker.write("2")
        raise KeyboardInterrupt
    assert Path(path).read_text() == "1"
    with pytest.raises(TrackerFailed), files.open(str(Path(path) / TRACKER), "w") as tracker:
        tracker.write("2")


def test_upstream_still_needs_it(tmp_path: Path) -> None:
    """Fails when Megatron reads an empty tracker, tells all ranks of rank 0's failures, stores results without a process, or
    knows its own rerun mode."""
    (tmp_path / TRACKER).write_text("")
    with pytest.raises(SystemExit):
        checkpointing.read_metadata(str(tmp_path / TRACKER))
    ending = inspect.getsource(serialization.save)
    for function in ("save_config(", "save_integrity_manifest("):  # unguarded, before a barrier of all ranks
        assert f"if torch.distributed.get_rank() == 0:\n            {function}" in ending
    assert not isinstance(filesystem_async._results_queue, queue.SimpleQueue)
    assert "Manager" in filesystem_async.get_write_results_queue.__wrapped__.__code__.co_names
    with pytest.raises(ValueError):
        RerunMode("report_stats")
