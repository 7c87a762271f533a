"""Which files the flags name."""

import argparse
import gzip
import os
import subprocess
from pathlib import Path

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.bad_documents import SkipLog
from megatron_compete.data.inputs import (
    InputOptions,
    add_input_flags,
    find_sources,
    read_documents,
    take_input_options,
)
from tests.data.inputs.files import COMPRESS, write_parquet


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


def test_what_is_passed_over_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touch(
        tmp_path,
        "c/a.jsonl",
        "c/b.jsonl.1",
        "c/c.jsonl-00000-of-00002",
        "c/d.csv",
        "c/e.JSONL",
        "c/sub/part-0",
        "d.txt",
    )
    assert names(tmp_path, "c") == ["c/a.jsonl", "c/b.jsonl.1", "c/c.jsonl-00000-of-00002", "c/e.JSONL"]
    assert capsys.readouterr().err == (
        f"--input {tmp_path}/c: 2 of 6 passed over, each of no known format by its name: {tmp_path}/c/d.csv, {tmp_path}/c/sub/part-0\n"
    )
    names(tmp_path, "*")
    assert capsys.readouterr().err == f"--input {tmp_path}/*: 1 of 2 passed over, each no file: {tmp_path}/c\n"
    with pytest.raises(FileNotFoundError):
        (tmp_path / "c" / "gone.jsonl").symlink_to("nowhere")
        names(tmp_path, "c")


def test_contents_count_and_names_that_differ_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = b'{"text": "a"}\n'
    for suffix, compress in COMPRESS.items():
        (tmp_path / f"{suffix[1:] or 'plain'}.jsonl.gz").write_bytes(compress(lines))
        (tmp_path / f"{suffix[1:] or 'plain'}.jsonl").write_bytes(compress(lines))
    write_parquet(tmp_path / "parquet.jsonl", {"text": ["a"]}, 1)
    sources = find_sources([str(tmp_path)])
    assert len(sources) == 2 * len(COMPRESS) + 1
    assert [document.text for document in read_documents(sources, "text", SkipLog())] == ["a"] * len(sources)
    said = capsys.readouterr().err
    assert (
        said.startswith(f"--input: {tmp_path}/bz2.jsonl is bz2 data, whatever its name says, ")
        and " and 6 more" in said
    )


@pytest.mark.parametrize("skip", [False, True])
def test_a_pipe(tmp_path: Path, skip: bool) -> None:
    os.mkfifo(tmp_path / "a")
    os.mkfifo(tmp_path / "b")
    with pytest.raises(CompeteError, match="names several pipes"):
        names(tmp_path, "a", "b")
    with pytest.raises(CompeteError, match="neither a file nor a folder nor a pipe"):
        find_sources(["/dev/null"])
    for content, words in (
        (gzip.compress(b"{}"), "brings gz data: decompress it before"),
        (b"PAR1abc", "brings Parquet"),
        (b'[\n{"text": "a"}]', r"is a JSON array .* jq -c '\.\[\]' FILE > NEW"),
        (b'{"text": "a"}\n', None),
    ):
        with subprocess.Popen(["tee", str(tmp_path / "a")], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as writer:
            assert writer.stdin is not None
            writer.stdin.write(content)
            writer.stdin.close()
            documents = read_documents(find_sources([str(tmp_path / "a")]), "text", SkipLog("skip" if skip else "fail"))
            if words is None:
                assert [document.text for document in documents] == ["a"]
                continue
            with pytest.raises(CompeteError, match=words):
                list(documents)


def test_form_and_compression_follow_the_name(tmp_path: Path) -> None:
    for name in ("a.jsonl.bz2", "c.TXT.GZ", "d.zst"):
        (tmp_path / name).write_bytes(COMPRESS[Path(name.lower()).suffix](b"{}\n"))
    touch(tmp_path, "e")
    write_parquet(tmp_path / "b.parquet", {"text": ["a"]}, 1)
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
    (tmp_path / "list").write_text(f"\ufeff{tmp_path}/c.jsonl\r\n\n{tmp_path}/b*\n")
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
    touch(tmp_path, "full.jsonl")
    (tmp_path / "p.parquet.gz").write_bytes(gzip.compress(b"PAR1"))
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "folder").mkdir()
    for inputs, words in (
        (["none.jsonl"], "no such file"),
        (["*.txt"], "no file matches"),
        (["folder"], "is below it"),
        (["empty.jsonl"], "the corpus is empty"),
        (["full.jsonl", "f*l"], "twice"),
        (["p.parquet.gz"], "is a compressed file, which Parquet cannot be read from"),
    ):
        with pytest.raises(CompeteError, match=words):
            names(tmp_path, *inputs)
    with pytest.raises(CompeteError, match=r"--input-list .*gone: No such file"):
        find_sources([f"--input-list {tmp_path}/gone"])
