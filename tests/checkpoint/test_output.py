"""Output appears whole or not at all, and what a killed run left behind is cleared away."""

from pathlib import Path

import pytest

from megatron_compete.checkpoint.output import check_output, whole_or_nothing
from megatron_compete.errors import CompeteError


def write(output: Path, text: str) -> None:
    with whole_or_nothing(output) as staged:
        (staged / "config.json").write_text(text)


def test_a_folder_and_its_replacement(tmp_path: Path) -> None:
    for text in ("one", "two"):
        write(tmp_path / "deep" / "hf", text)
        assert (tmp_path / "deep" / "hf" / "config.json").read_text() == text
        assert [path.name for path in (tmp_path / "deep").iterdir()] == ["hf"]


def test_what_a_killed_run_left_behind(tmp_path: Path) -> None:
    left = tmp_path / ".hf.partial" / "sub"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_text("half")
    (tmp_path / ".hf.partial" / "config.json").write_text("half")
    write(tmp_path / "hf", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    assert [path.name for path in (tmp_path / "hf").iterdir()] == ["config.json"]


def test_two_at_once(tmp_path: Path) -> None:
    with whole_or_nothing(tmp_path / "hf") as staged:
        (staged / "config.json").write_text("first")
        with pytest.raises(CompeteError, match="is being written by another process"):
            write(tmp_path / "hf", "second")
    assert (tmp_path / "hf" / "config.json").read_text() == "first"


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), whole_or_nothing(tmp_path / "hf") as staged:
        (staged / "config.json").write_text(str(1 / 0))
    assert list(tmp_path.iterdir()) == []


def test_what_may_be_replaced(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    write(tmp_path / "hf", "one")
    check_output(tmp_path / "new", source, False, "config.json")
    check_output(tmp_path / "hf", source, True, "config.json")
    for name, force, message in (
        ("hf", False, "exists: choose another folder, or replace it with --force"),
        ("mine", True, "is not a converted model"),
        ("link", True, "is not a converted model"),
        ("source", True, "holds the checkpoint"),
        (".", True, "holds the checkpoint"),
    ):
        with pytest.raises(CompeteError, match=message):
            check_output(tmp_path / name, source, force, "config.json")
