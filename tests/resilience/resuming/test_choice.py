"""Which checkpoint is chosen, in every state that a folder can be in."""

import argparse
import pickle
import shutil
from pathlib import Path

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.common.files import write_whole
from megatron_compete.resilience.resuming import choice
from megatron_compete.resilience.resuming.choice import Choice, choose, load_folder, rename_aside
from tests.faults.damage import DAMAGES, TRACKER, TRACKERS
from tests.training.runs import train


class Extra:
    """Something that only another writer knows."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of the iterations 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("resume") / "ckpt"
    train(1, f"--train-iters 3 --save-interval 1 --save {folder}")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "ckpt"))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_dir()}


def test_the_trackers_checkpoint_is_taken_if_it_is_whole(folder: Path) -> None:
    assert choose(folder, set_aside=True) == Choice()
    (folder / TRACKER).write_text("2\n")
    assert choose(folder, set_aside=True) == Choice()
    assert names(folder) == {"iter_0000001", "iter_0000002", "iter_0000003"}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_named_and_set_aside(damage: str, folder: Path) -> None:
    do, said = DAMAGES[damage]
    do(folder / "iter_0000003")
    choice = choose(folder, set_aside=True)
    assert choice.iteration == 2
    assert choice.lines[0].startswith(f"damaged checkpoint {folder}/iter_0000003: ") and said in choice.lines[0]
    assert choice.lines[1] == f"{folder}/iter_0000003 is set aside as iter_0000003.damaged"
    assert choice.lines[2] == "going on from iteration 2, the newest whole checkpoint"
    assert not any("\n" in line for line in choice.lines)
    assert names(folder) == {"iter_0000001", "iter_0000002", "iter_0000003.damaged"}
    assert (folder / TRACKER).read_text() == "2"
    assert choose(folder, set_aside=True) == Choice()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_folder_of_others_is_left_as_it_is(damage: str, folder: Path) -> None:
    DAMAGES[damage][0](folder / "iter_0000003")
    before = sorted(path.name for path in folder.rglob("*"))
    assert choose(folder).iteration == 2
    assert sorted(path.name for path in folder.rglob("*")) == before
    assert (folder / TRACKER).read_text() == "3"


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_damaged_tracker(tracker: str, folder: Path) -> None:
    text, said = TRACKERS[tracker]
    (folder / TRACKER).write_text(text)
    choice = choose(folder)
    assert (choice.iteration, choice.tracker_is_readable) == (3, tracker == "missing iteration")
    assert said in choice.lines[0]
    assert choose(folder, set_aside=True).iteration == 3
    assert (folder / TRACKER).read_text() == "3"


def test_a_tracker_that_was_set_back_is_obeyed(folder: Path) -> None:
    (folder / TRACKER).write_text("2")
    DAMAGES["missing shard"][0](folder / "iter_0000002")
    assert choose(folder).iteration == 1


def test_two_damaged_in_a_row(folder: Path) -> None:
    DAMAGES["missing shard"][0](folder / "iter_0000003")
    DAMAGES["no .metadata"][0](folder / "iter_0000002")
    choice = choose(folder, set_aside=True)
    assert choice.iteration == 1
    assert sum(line.startswith("damaged checkpoint") for line in choice.lines) == 2
    assert names(folder) == {"iter_0000001", "iter_0000002.damaged", "iter_0000003.damaged"}


def test_none_whole_is_an_error_and_nothing_is_touched(folder: Path) -> None:
    for iteration in (1, 2, 3):
        DAMAGES["truncated shard"][0](folder / f"iter_000000{iteration}")
    with pytest.raises(CompeteError, match="has no whole checkpoint") as error:
        choose(folder, set_aside=True)
    assert all(f"iter_000000{iteration}" in str(error.value) for iteration in (1, 2, 3))
    assert names(folder) == {"iter_0000001", "iter_0000002", "iter_0000003"}


def test_a_step_that_the_user_names_has_no_substitute(folder: Path) -> None:
    assert choose(folder, step=2).iteration == 2
    DAMAGES["truncated shard"][0](folder / "iter_0000002")
    with pytest.raises(CompeteError, match=r"--ckpt-step 2: damaged checkpoint .*was cut short"):
        choose(folder, step=2, set_aside=True)
    with pytest.raises(CompeteError, match=r"--ckpt-step 7: .* has 1, 2, 3"):
        choose(folder, step=7)


def test_no_checkpoint_yet(folder: Path, tmp_path: Path) -> None:
    assert choose(tmp_path / "nowhere") == Choice()
    (tmp_path / "empty").mkdir()
    assert choose(tmp_path / "empty") == Choice()


def test_a_first_save_that_was_cut_off_is_a_fresh_start(folder: Path) -> None:
    (folder / TRACKER).unlink()
    for iteration in (1, 2, 3):
        DAMAGES["no metadata.json"][0](folder / f"iter_000000{iteration}")
    choice = choose(folder, set_aside=True)
    assert choice.iteration is None
    assert choice.lines[-1] == f"no save into {folder} was ever finished: the run starts anew"


def test_a_kill_before_the_first_tracker(folder: Path) -> None:
    (folder / TRACKER).unlink()
    assert choose(folder).iteration == 3


def test_an_empty_tracker_alone(tmp_path: Path) -> None:
    (tmp_path / TRACKER).write_text("")
    with pytest.raises(CompeteError, match=r"is empty, and .* has no checkpoint"):
        choose(tmp_path)


def test_a_foreign_file_is_no_damage(folder: Path) -> None:
    (folder / "iter_0000003/notes.txt").write_text("mine")
    assert choose(folder) == Choice()


def test_an_index_with_classes_of_another_writer_is_no_damage(folder: Path) -> None:
    path = folder / "iter_0000003/.metadata"
    index = pickle.loads(path.read_bytes())
    index.extra = Extra()
    path.write_bytes(pickle.dumps(index))
    assert choose(folder) == Choice()


def test_an_imported_checkpoint(folder: Path) -> None:
    (folder / "iter_0000003").rename(folder / "release")
    (folder / TRACKER).write_text("release")
    assert choose(folder) == Choice()
    DAMAGES["missing shard"][0](folder / "release")
    with pytest.raises(CompeteError, match="Import or copy it again"):
        choose(folder)


def test_the_old_format_is_left_to_megatron(tmp_path: Path) -> None:
    (tmp_path / "iter_0000001/mp_rank_00").mkdir(parents=True)
    (tmp_path / TRACKER).write_text("1")
    assert choose(tmp_path, set_aside=True) == Choice()


def test_pretrained_weights_count_until_the_run_has_its_own(folder: Path, tmp_path: Path) -> None:
    def arguments(load: Path | None, pretrained: Path | None) -> argparse.Namespace:
        return argparse.Namespace(load=load and str(load), pretrained_checkpoint=pretrained and str(pretrained))

    assert load_folder(arguments(None, None)) is None
    assert load_folder(arguments(tmp_path / "new", None)) == tmp_path / "new"
    assert load_folder(arguments(tmp_path / "new", folder)) == folder
    assert load_folder(arguments(folder, tmp_path / "other")) == folder


def test_no_name_is_given_twice(tmp_path: Path) -> None:
    for _ in range(2):
        (tmp_path / "iter_0000001").mkdir()
        rename_aside(tmp_path / "iter_0000001")
    assert names(tmp_path) == {"iter_0000001.damaged", "iter_0000001.damaged-2"}


def test_a_kill_in_the_trackers_write_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / TRACKER, "1")

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(choice.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / TRACKER, "2")
    assert (tmp_path / TRACKER).read_text() == "1"
