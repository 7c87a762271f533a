"""Output appears whole or not at all, and what a killed run left behind is cleared away."""

import json
import os
from pathlib import Path

import pytest

from megatron_compete.checkpoint.output import SENTINEL, check_output, is_done, made_from, whole_or_nothing
from megatron_compete.common.errors import CompeteError


def write(output: Path, text: str) -> None:
    with whole_or_nothing(output, "digest") as staged:
        (staged / "config.json").write_text(text)
        (staged / "release").mkdir()
        (staged / "release" / "weights").write_text(text)


def test_a_folder_and_its_replacement(tmp_path: Path) -> None:
    for text in ("one", "two"):
        write(tmp_path / "deep" / "hf", text)
        assert (tmp_path / "deep" / "hf" / "config.json").read_text() == text
        assert [path.name for path in (tmp_path / "deep").iterdir()] == ["hf"]


def test_what_a_killed_run_left_behind(tmp_path: Path) -> None:
    staged = tmp_path / ".hf.partial"
    if os.fork() == 0:
        with whole_or_nothing(tmp_path / "hf", "digest"):
            (staged / "sub").mkdir()
            (staged / "sub" / "model.safetensors").write_text("half")
            os._exit(9)
    os.wait()
    assert (staged / "sub" / "model.safetensors").exists() and not (tmp_path / "hf").exists()
    write(tmp_path / "hf", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    assert {path.name for path in (tmp_path / "hf").iterdir()} == {SENTINEL, "config.json", "release"}


def test_a_folder_of_the_users_where_output_is_made(tmp_path: Path) -> None:
    (tmp_path / ".hf.partial").mkdir()
    (tmp_path / ".hf.partial" / "thesis.tex").touch()
    with pytest.raises(CompeteError, match="holds what is not ours"):
        write(tmp_path / "hf", "one")
    assert (tmp_path / ".hf.partial" / "thesis.tex").exists()


def test_two_at_once(tmp_path: Path) -> None:
    with whole_or_nothing(tmp_path / "hf", "digest") as staged:
        (staged / "config.json").write_text("first")
        with pytest.raises(CompeteError, match="is being written by another process"):
            write(tmp_path / "hf", "second")
    assert (tmp_path / "hf" / "config.json").read_text() == "first"


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), whole_or_nothing(tmp_path / "hf", "digest") as staged:
        (staged / "config.json").write_text(str(1 / 0))
    assert list(tmp_path.iterdir()) == []


def test_what_may_be_replaced(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for folder, name in (("mine", "thesis.tex"), ("run", "recipe.yaml"), ("model", "config.json")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "hf", "one")
    (tmp_path / "other").symlink_to(tmp_path / "hf")
    check_output(tmp_path / "new", source, False)
    check_output(tmp_path / "empty", source, False)
    check_output(tmp_path / "hf", source, True)
    for name, force, message in (
        ("hf", False, "exists: choose another folder, or replace it"),
        ("mine", True, "is not an earlier conversion"),
        ("run", True, "is not an earlier conversion"),
        ("model", True, "is not an earlier conversion"),
        ("link", True, "is not an earlier conversion"),
        ("other", True, "is not an earlier conversion"),
        ("source", True, "holds the checkpoint"),
        (".", True, "holds the checkpoint"),
    ):
        with pytest.raises(CompeteError, match=message):
            check_output(tmp_path / name, source, force)


@pytest.mark.parametrize(
    "put", ["iter_0000010/__0_0.distcp", "config.json", "release/weights", "link", "folder-link"], ids=str
)
def test_an_output_that_holds_anything_else_stays(tmp_path: Path, put: str) -> None:
    output = tmp_path / "out"
    write(output, "one")
    (output / put).parent.mkdir(exist_ok=True)
    if "link" in put:
        (output / put).symlink_to(tmp_path if put == "folder-link" else tmp_path / "out" / "config.json")
    else:
        (output / put).write_text("of the user")
    with pytest.raises(CompeteError, match=f"holds what the conversion did not write: {put}: it is not replaced"):
        check_output(output, tmp_path / "source", True)
    assert (output / put).exists()


def test_what_comes_into_an_output_while_it_is_written_anew(tmp_path: Path) -> None:
    output = tmp_path / "out"
    write(output, "one")
    with pytest.raises(CompeteError, match="did not write: days-of-work"), whole_or_nothing(output, "digest") as staged:
        (staged / "config.json").write_text("two")
        (output / "days-of-work").write_text("a run began to save here")
    assert (output / "config.json").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_sentinel_is_not_trusted(tmp_path: Path) -> None:
    """A list that names a file outside of its folder removes nothing outside."""
    output, outside = tmp_path / "out", tmp_path / "precious"
    outside.write_text("x")
    write(output, "one")
    content = json.loads((output / SENTINEL).read_text())
    content["files"]["../precious"] = 1
    (output / SENTINEL).write_text(json.dumps(content))
    write(output, "two")
    assert outside.exists() and (output / "config.json").read_text() == "two"
    for text in ("", "[]", "{}", '{"made_from": 1, "files": [1]}', '{"made_from": 1, "files": {"a": "b"}}', "[" * 9999):
        (output / SENTINEL).write_text(text)
        with pytest.raises(CompeteError, match="cannot be read"):
            check_output(output, tmp_path / "source", True)


def test_what_an_output_is_made_from(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("one")
    first = made_from([tmp_path / "model"], {"dtype": None})
    assert made_from([tmp_path / "model"], {"dtype": None}) == first
    assert made_from([tmp_path / "model"], {"dtype": "float32"}) != first
    write(tmp_path / "out", "one")
    assert is_done(tmp_path / "out", "digest") and not is_done(tmp_path / "out", first)
    (tmp_path / "out" / "notes").touch()  # of the user: no reason to write it anew
    assert is_done(tmp_path / "out", "digest")
    os.utime(tmp_path / "model" / "weights", ns=(1, 1))
    assert made_from([tmp_path / "model"], {"dtype": None}) != first
