"""Files appear whole, and names from an index stay in its folder."""

import errno
import os
import re
import stat
from pathlib import Path

import pytest

import megatron_compete
from megatron_compete.common.errors import CompeteError
from megatron_compete.common.files import StagedFiles, path_within, publish, rename, try_lock, write_whole
from tests.data.conftest import files_in


def test_content_is_replaced_and_nothing_is_left_beside(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    write_whole(path, "old")
    write_whole(path, b"new", mode=0o600)
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["file"]


def test_a_failed_write_leaves_the_old_content_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_whole(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staged, final = tmp_path / "staged", tmp_path / "final"
    (staged / "inner").mkdir(parents=True)
    (staged / "inner" / "file").write_text("content")
    (staged / "link").symlink_to("nowhere")
    synced: list[tuple[str, bool]] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), final.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    publish(staged, final)
    before = {path for path, named in synced if not named}
    assert before == {str(staged), str(staged / "inner"), str(staged / "inner" / "file")}
    assert synced[-1] == (str(tmp_path), True)


def test_a_new_name_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "one" / "folder").mkdir()
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    rename(tmp_path / "one" / "folder", tmp_path / "other" / "folder")
    assert sorted(synced) == [str(tmp_path / "one"), str(tmp_path / "other")]
    assert (tmp_path / "other" / "folder").is_dir()


def test_a_file_system_without_sync_of_folders_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(tmp_path / "file", "content")
    assert (tmp_path / "file").read_text() == "content"


def test_commit_puts_files_in_place_and_makes_their_folder(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.bin"
    with StagedFiles() as staged:
        Path(staged.path(str(target))).write_text("content")
        assert not target.exists()
        assert os.path.dirname(staged.path(str(target))) == str(target.parent)
        staged.commit()
    assert target.read_text() == "content"
    assert files_in(target.parent) == ["a.bin"]


def test_failure_leaves_no_file_and_keeps_the_old_one(tmp_path: Path) -> None:
    old = tmp_path / "a.bin"
    old.write_text("old")
    with pytest.raises(RuntimeError), StagedFiles() as staged:
        Path(staged.path(str(old))).write_text("half")
        staged.path(str(tmp_path / "never-written"))
        raise RuntimeError
    assert files_in(tmp_path) == ["a.bin"]
    assert old.read_text() == "old"


def test_crash_during_commit_leaves_no_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.bin", "a.idx"):
        (tmp_path / name).write_text("old")
    replaced = []

    def replace_once(source: str, target: str) -> None:
        if replaced:
            raise KeyboardInterrupt
        replaced.append(target)
        os.rename(source, target)

    monkeypatch.setattr(os, "replace", replace_once)
    with pytest.raises(KeyboardInterrupt), StagedFiles() as staged:
        for name in ("a.bin", "a.idx"):
            Path(staged.path(str(tmp_path / name))).write_text("new")
        staged.commit()
    assert files_in(tmp_path) == ["a.bin"]
    assert (tmp_path / "a.bin").read_text() == "new"


def test_names_are_given_and_files_synced_in_one_place() -> None:
    """What renames or syncs by hand elsewhere forgets the file or the folder; the exceptions say why."""
    allowed = {
        "common/files.py": "the place",
        "checkpoint/output.py": "an earlier output steps aside, whole under either name",
        "resilience/saving/folder.py": "a lock: who renames it first has it, and nothing of it outlives a host",
    }
    package = Path(megatron_compete.__file__).parent
    by_hand = re.compile(r"\bos\.(replace|rename|fsync)\(|\.rename\(")
    found = {str(path.relative_to(package)) for path in package.rglob("*.py") if by_hand.search(path.read_text())}
    assert found <= allowed.keys()


@pytest.mark.parametrize("name", ["", ".", "/etc/passwd", "//x", "../x", "a/../../x", "a\0b", "..\\x", 5, None, ["x"]])
def test_a_name_that_leads_out_is_refused(tmp_path: Path, name: object) -> None:
    with pytest.raises(CompeteError, match=r"index\.json names the file"):
        path_within(tmp_path, name, "index.json")


def test_a_plain_name_is_taken(tmp_path: Path) -> None:
    assert path_within(tmp_path, "part/x.safetensors", "index.json") == tmp_path / "part" / "x.safetensors"


def test_a_lock_is_had_by_one_and_goes_with_its_last_holder(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "lock"):
        first = try_lock(path)
        assert first is not None and try_lock(path) is None
        copy = os.dup(first)  # as a child has it
        os.close(first)
        assert try_lock(path) is None
        os.close(copy)
        again = try_lock(path)
        assert again is not None
        os.close(again)
