"""Reading JSON Lines, and what becomes of lines that hold no document."""

from pathlib import Path

import pytest

from megatron_compete.data.corpus import (
    KINDS,
    BadLine,
    CorpusLine,
    SkipLog,
    expand_inputs,
    no_documents,
    parse_line,
    read_documents,
    read_lines,
)
from megatron_compete.errors import CompeteError
from tests.data.conftest import WriteCorpus

BAD_LINES = [
    ("not_utf8", b'{"text": "\xff"}'),
    ("not_json", b'{"text": '),
    ("not_json", b"[" * 100_000),
    ("not_json", b'{"text": "a"} {"text": "b"}'),
    ("not_json", b'{"text": "line\nbreak"}'.split(b"\n")[0]),
    ("not_object", b'["text"]'),
    ("not_object", b"3"),
    ("missing_key", b'{"content": "a"}'),
    ("missing_key", b"{}"),
    ("not_text", b'{"text": null}'),
    ("not_text", b'{"text": 3}'),
    ("not_text", b'{"text": ["a", 3]}'),
    ("not_text", b'{"text": {"a": "b"}}'),
    ("lone_surrogate", b'{"text": "a\\ud800b"}'),
    ("lone_surrogate", b'{"text": ["fine", "\\udfff"]}'),
]


@pytest.mark.parametrize(("kind", "raw"), BAD_LINES)
def test_kinds_of_bad_lines(kind: str, raw: bytes) -> None:
    with pytest.raises(BadLine) as caught:
        parse_line(raw, ["text"])
    assert caught.value.kind == kind
    assert kind in KINDS


def test_good_lines() -> None:
    assert parse_line(b'{"text": "a", "n": 1}\r\n', ["text"]) == {"text": "a"}
    assert parse_line(b'{"text": ["a", "", "b"], "title": ""}', ["title", "text"]) == {
        "title": "",
        "text": ["a", "", "b"],
    }
    assert parse_line('{"text": "\\ud83d\\ude42 é 🙂"}'.encode(), ["text"]) == {"text": "🙂 é 🙂"}


def test_lines_keep_their_numbers_over_blank_ones_and_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "1"}\n\n  \r\n{"text": "2"}')
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "3"}\n')
    (tmp_path / "c.jsonl").write_bytes(b"")
    files = expand_inputs([str(tmp_path / "*.jsonl")])
    documents = list(read_documents(files, "text", SkipLog()))
    assert [(Path(file).name, number, text) for file, number, text in documents] == [
        ("a.jsonl", 1, "1"),
        ("a.jsonl", 4, "2"),
        ("b.jsonl", 1, "3"),
    ]


def test_sentences_are_joined_for_reading(write_corpus: WriteCorpus) -> None:
    path = write_corpus([{"text": ["a. ", "b."]}])
    assert [document.text for document in read_documents([path], "text", SkipLog())] == ["a. b."]


def test_fail_names_file_line_reason_and_way_out(write_corpus: WriteCorpus) -> None:
    path = write_corpus([{"text": "a"}, "", {"content": "b"}])
    with pytest.raises(CompeteError) as caught:
        list(read_documents([path], "text", SkipLog("fail")))
    message = str(caught.value)
    assert message.startswith(f"{path}:3: no key 'text' (it has 'content')")
    assert "--on-error skip" in message


def test_skip_counts_by_kind_and_remembers_the_first(write_corpus: WriteCorpus) -> None:
    path = write_corpus([{"text": "a"}, "{", {"text": 1}, "[", {"text": "b"}])
    skips = SkipLog("skip")
    assert [document.text for document in read_documents([path], "text", skips)] == ["a", "b"]
    assert dict(skips.counts) == {"not_json": 2, "not_text": 1}
    assert skips.total == 3
    assert skips.summary() == "skipped 3 lines (2 not_json, 1 not_text)"
    assert skips.report()[0].startswith(f"skipped 2 not_json, the first at {path}:2: ")
    assert f"{path}:2" in str(no_documents([path], "text", skips))


def test_inputs_keep_their_order_and_patterns_are_sorted(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "[odd].jsonl"):
        (tmp_path / name).write_text("{}\n")
    folder = str(tmp_path)
    assert expand_inputs([f"{folder}/b.jsonl", f"{folder}/a*"]) == [f"{folder}/b.jsonl", f"{folder}/a.jsonl"]
    assert expand_inputs([f"{folder}/[odd].jsonl"]) == [f"{folder}/[odd].jsonl"]


def test_inputs_that_cannot_be_used(tmp_path: Path) -> None:
    empty, full = tmp_path / "empty.jsonl", tmp_path / "full.jsonl"
    empty.write_text("")
    full.write_text("{}\n")
    for patterns, words in (
        ([str(tmp_path / "none.jsonl")], "no such file"),
        ([str(tmp_path / "*.txt")], "no file matches"),
        ([str(tmp_path)], "is a folder"),
        ([str(empty)], "is empty"),
        ([str(full), str(tmp_path / "f*")], "twice"),
    ):
        with pytest.raises(CompeteError, match=words):
            expand_inputs(patterns)


def test_read_lines_is_lazy(write_corpus: WriteCorpus) -> None:
    path = write_corpus(["one", "two"])
    assert next(read_lines([path, "/nonexistent"])) == CorpusLine(path, 1, b"one\n")
