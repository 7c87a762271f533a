"""A damaged newest checkpoint: named, set aside, and training goes on from the one before."""

import shutil
from pathlib import Path

import pytest

from tests.faults.damage import DAMAGES, TRACKER, TRACKERS
from tests.faults.injected import RUN, assert_goes_on, failing, losses, train

pytestmark = pytest.mark.faults


@pytest.fixture
def folder(undisturbed: Path, tmp_path: Path) -> Path:
    """A run that got as far as iteration 6."""
    folder = Path(shutil.copytree(undisturbed.parent / "ckpt", tmp_path / "ckpt"))
    shutil.rmtree(folder / "iter_0000008")
    (folder / TRACKER).write_text("6")
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_one_before_is_used(damage: str, folder: Path, tmp_path: Path, undisturbed: Path) -> None:
    DAMAGES[damage][0](folder / "iter_0000006")
    train(2, f"{RUN} --save {folder} --load {folder} --tensorboard-dir {tmp_path}/resumed")
    assert_goes_on(tmp_path / "resumed", undisturbed, after=4)
    assert (folder / "iter_0000006.damaged").is_dir() and (folder / "iter_0000006").is_dir()
    assert (folder / TRACKER).read_text() == "8"


@pytest.mark.parametrize("tracker", TRACKERS)
@pytest.mark.parametrize("save", [True, False], ids=["own folder", "read-only"])
def test_a_damaged_tracker(tracker: str, save: bool, folder: Path, tmp_path: Path, undisturbed: Path) -> None:
    (folder / TRACKER).write_text(TRACKERS[tracker][0])
    own = f"--save {folder}" if save else ""
    newest = 4 if tracker == "missing iteration" else 6
    train(2, f"{RUN} {own} --load {folder} --tensorboard-dir {tmp_path}/resumed")
    assert_goes_on(tmp_path / "resumed", undisturbed, after=newest)


def test_weights_from_a_damaged_folder_of_others(folder: Path, tmp_path: Path) -> None:
    DAMAGES["missing shard"][0](folder / "iter_0000006")
    before = sorted(folder.rglob("*"))
    train(2, f"{RUN} --finetune --load {folder} --save {tmp_path}/new --tensorboard-dir {tmp_path}/tuned")
    assert set(losses(tmp_path / "tuned")) == set(range(1, 9))
    assert sorted(folder.rglob("*")) == before


def test_none_whole_and_a_named_step(folder: Path) -> None:
    DAMAGES["truncated shard"][0](folder / "iter_0000004")
    said = failing(2, f"{RUN} --load {folder} --ckpt-step 4")
    assert said.count("error: --ckpt-step 4: damaged checkpoint") == 1 and "SystemExit: 2" in said
    for iteration in (2, 6):
        DAMAGES["no .metadata"][0](folder / f"iter_000000{iteration}")
    said = failing(2, f"{RUN} --load {folder} --save {folder}")
    assert said.count(f"error: --load {folder} has no whole checkpoint") == 1
    assert not list(folder.glob("*.damaged"))
