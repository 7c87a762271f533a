"""Files appear whole, and names from an index stay in its folder."""

import os
import stat
from pathlib import Path

import pytest

from megatron_compete.errors import CompeteError
from megatron_compete.files import path_within, publish, write_whole


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


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "a\0b", "..\\x"])
def test_a_name_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CompeteError, match=r"index\.json names the file"):
        path_within(tmp_path, name, "index.json")


def test_a_plain_name_is_taken(tmp_path: Path) -> None:
    assert path_within(tmp_path, "part/x.safetensors", "index.json") == tmp_path / "part" / "x.safetensors"
