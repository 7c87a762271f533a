"""Which folder holds a checkpoint, and the line that says why none does."""

import json
from pathlib import Path

import pytest

from megatron_compete.checkpoint.location import find_checkpoint
from megatron_compete.common.errors import CompeteError


def checkpoint(folder: Path, iteration: int, backend: str = "torch_dist") -> Path:
    path = folder / f"iter_{iteration:07d}"
    path.mkdir(parents=True)
    (path / "metadata.json").write_text(json.dumps({"sharded_backend": backend}))
    (path / ".metadata").touch()
    return path


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    checkpoint(tmp_path, 5)
    checkpoint(tmp_path, 10)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("10\n")
    return tmp_path


def test_the_latest_iteration(saved: Path) -> None:
    assert find_checkpoint(saved) == saved / "iter_0000010"


def test_another_iteration(saved: Path) -> None:
    assert find_checkpoint(saved, 5) == saved / "iter_0000005"
    with pytest.raises(CompeteError, match=r"--iteration 7: .* has iter_0000005, iter_0000010"):
        find_checkpoint(saved, 7)


def test_an_iterations_own_folder(saved: Path) -> None:
    assert find_checkpoint(saved / "iter_0000005") == saved / "iter_0000005"
    assert find_checkpoint(saved / "iter_0000005", 5) == saved / "iter_0000005"
    with pytest.raises(CompeteError, match="disagree"):
        find_checkpoint(saved / "iter_0000005", 10)


def test_a_release(saved: Path) -> None:
    (saved / "iter_0000010").rename(saved / "release")
    (saved / "latest_checkpointed_iteration.txt").write_text("release")
    assert find_checkpoint(saved) == saved / "release"


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CompeteError, match="no such folder"):
        find_checkpoint(tmp_path / "none")
    with pytest.raises(CompeteError, match=r"no checkpoint here .* no iter_XXXXXXX folder"):
        find_checkpoint(tmp_path)


def test_a_missing_tracker_names_what_is_there(saved: Path) -> None:
    (saved / "latest_checkpointed_iteration.txt").unlink()
    with pytest.raises(
        CompeteError, match=r"latest_checkpointed_iteration.txt is missing; it has iter_0000005, iter_0000010"
    ):
        find_checkpoint(saved)


def test_a_tracker_that_names_nothing(saved: Path) -> None:
    tracker = saved / "latest_checkpointed_iteration.txt"
    tracker.write_text("15")
    with pytest.raises(CompeteError, match="names iter_0000015, which is not there"):
        find_checkpoint(saved)
    tracker.write_text("soon")
    with pytest.raises(CompeteError, match="'soon' instead of an iteration"):
        find_checkpoint(saved)


def test_an_unfinished_save(saved: Path) -> None:
    (saved / "iter_0000010" / "metadata.json").unlink()
    with pytest.raises(CompeteError, match="a save that did not finish"):
        find_checkpoint(saved)
    (saved / "iter_0000010" / ".metadata").unlink()
    with pytest.raises(CompeteError, match="the folder is empty"):
        find_checkpoint(saved)


def test_other_formats(tmp_path: Path) -> None:
    with pytest.raises(CompeteError, match="has the format zarr: only torch_dist"):
        find_checkpoint(checkpoint(tmp_path, 1, "zarr"))
    (tmp_path / "iter_0000002" / "mp_rank_00").mkdir(parents=True)
    with pytest.raises(CompeteError, match=r"the format torch .* --ckpt-convert-format"):
        find_checkpoint(tmp_path / "iter_0000002")


def test_damage(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 1)
    (path / ".metadata").unlink()
    with pytest.raises(CompeteError, match=r"is damaged: \.metadata"):
        find_checkpoint(path)
    (path / "metadata.json").write_text("{}")
    with pytest.raises(CompeteError, match="sharded_backend"):
        find_checkpoint(path)
