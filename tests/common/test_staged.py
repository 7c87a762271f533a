"""Outputs appear complete or not at all."""

import os
from pathlib import Path

import pytest

from megatron_compete.common import staged as staged_module
from megatron_compete.common.staged import StagedFiles
from tests.data.conftest import files_in


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

    monkeypatch.setattr(staged_module.os, "replace", replace_once)
    with pytest.raises(KeyboardInterrupt), StagedFiles() as staged:
        for name in ("a.bin", "a.idx"):
            Path(staged.path(str(tmp_path / name))).write_text("new")
        staged.commit()
    assert files_in(tmp_path) == ["a.bin"]
    assert (tmp_path / "a.bin").read_text() == "new"
