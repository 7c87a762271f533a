"""Which files the flags name."""

import argparse
from pathlib import Path

import pytest

from megatron_compete.data.inputs import InputOptions, add_input_flags, find_sources, take_input_options
from megatron_compete.errors import CompeteError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}\n")


def names(folder: Path, *inputs: str, options: InputOptions | None = None) -> list[str]:
    sources = find_sources([str(folder / one) for one in inputs], options)
    return [str(Path(source.path).relative_to(folder)) for source in sources]


def test_inputs_keep_their_order_and_patterns_are_sorted(tmp_path: Path) -> None:
    touch(tmp_path, "b.jsonl", "a.jsonl", "[odd].jsonl")
    assert names(tmp_path, "b.jsonl", "a*") == ["b.jsonl", "a.jsonl"]
    assert names(tmp_path, "[odd].jsonl") == ["[odd].jsonl"]


def test_a_folder_is_what_it_holds_of_known_kinds(tmp_path: Path) -> None:
    touch(tmp_path, "c/z.jsonl.zst", "c/a.json", "c/sub/b.txt.gz", "c/README.md", "c/.hidden/x.jsonl", "c/.y.jsonl")
    assert names(tmp_path, "c") == ["c/a.json", "c/z.jsonl.zst", "c/sub/b.txt.gz"]
    assert names(tmp_path, "c", options=InputOptions("text")) == ["c/sub/b.txt.gz"]
    with pytest.raises(CompeteError, match=r"is below it; name other files with a pattern"):
        names(tmp_path, "c", options=InputOptions("parquet"))


def test_form_and_compression_follow_the_name(tmp_path: Path) -> None:
    touch(tmp_path, "a.jsonl.bz2", "b.parquet", "c.TXT.GZ", "d.zst", "e")
    found = find_sources([str(tmp_path / "*")])
    assert [(source.format, source.compression) for source in found] == [
        ("jsonl", "bz2"),
        ("parquet", None),
        ("text", "gz"),
        ("jsonl", "zst"),
        ("jsonl", None),
    ]
    assert {source.format for source in find_sources([str(tmp_path / "e")], InputOptions("text"))} == {"text"}


def test_the_flags(tmp_path: Path) -> None:
    touch(tmp_path, "a.jsonl", "b.jsonl", "c.jsonl")
    (tmp_path / "list").write_text(f"{tmp_path}/c.jsonl\n\n{tmp_path}/b*\n")
    parser = argparse.ArgumentParser()
    add_input_flags(parser.add_argument_group())
    flags = ["--input", f"{tmp_path}/a.jsonl", "--input-list", f"{tmp_path}/list", "--text-documents", "blank-line"]
    options = vars(parser.parse_args(flags))
    inputs, reading = take_input_options(options)
    assert options == {} and reading == InputOptions("auto", "blank-line")
    assert [Path(source.path).name for source in find_sources(inputs, reading)] == ["a.jsonl", "c.jsonl", "b.jsonl"]
    with pytest.raises(CompeteError, match="no input"):
        take_input_options(vars(parser.parse_args([])))


def test_inputs_that_cannot_be_used(tmp_path: Path) -> None:
    touch(tmp_path, "full.jsonl", "p.parquet.gz")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "folder").mkdir()
    for inputs, words in (
        (["none.jsonl"], "no such file"),
        (["*.txt"], "no file matches"),
        (["folder"], "is below it"),
        (["empty.jsonl"], "the corpus is empty"),
        (["full.jsonl", "f*l"], "twice"),
        (["p.parquet.gz"], "Parquet cannot be read from the compressed file"),
    ):
        with pytest.raises(CompeteError, match=words):
            names(tmp_path, *inputs)
    with pytest.raises(CompeteError, match=r"--input-list .*gone: No such file"):
        find_sources([f"--input-list {tmp_path}/gone"])
