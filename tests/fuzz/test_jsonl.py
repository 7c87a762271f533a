"""Damaged JSON Lines and plain text: every line is a document as Python's `json` reads it, or a fault."""

import json
from pathlib import Path

import pytest

from megatron_compete.data.inputs import InputOptions
from tests.fuzz.corpora import VOCAB_SIZE, Document, lines, preprocessed, text
from tests.fuzz.damage import fuzz

BOM = b"\xef\xbb\xbf"
GOOD = [
    lines(range(20)),
    lines(range(100, 140)).replace(b"\n", b"\r\n"),
    b"".join(json.dumps({"text": [text(number), text(number + 300)]}).encode() + b"\n" for number in range(20)),
]


def ids_of(value: object) -> Document | None:
    """What NullTokenizer makes of a key's value; None for a fault."""
    sentences = value if isinstance(value, list) else [value]
    if not all(isinstance(sentence, str) for sentence in sentences):
        return None
    try:
        ids = tuple(int(word) for sentence in sentences for word in sentence.split(" "))
    except ValueError:
        return None
    return ids if all(0 <= number < VOCAB_SIZE for number in ids) else None


def document_of(line: bytes) -> Document | None:
    try:
        return ids_of(json.loads(line.decode("utf-8").removeprefix("\ufeff"), parse_int=float)["text"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def read_lines(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    found, faults = preprocessed(path)
    expected = [document_of(line) for line in data.removeprefix(BOM).split(b"\n") if line.strip()]
    assert found == [one for one in expected if one is not None]
    assert faults == expected.count(None)


def read_paragraphs(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    found, faults = preprocessed(path, InputOptions("text", "blank-line"))
    expected: list[Document | None] = []
    paragraph: list[bytes] = []
    for line in [*data.removeprefix(BOM).split(b"\n"), b""]:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            content = b"\n".join(paragraph).removesuffix(b"\r")
            try:
                expected.append(ids_of(content.decode("utf-8")))
            except UnicodeDecodeError:
                expected.append(None)
            paragraph = []
    assert found == [one for one in expected if one is not None]
    assert faults == expected.count(None)


@pytest.mark.slow
def test_lines(tmp_path: Path) -> None:
    assert fuzz("jsonl", GOOD, lambda data: read_lines(tmp_path / "c.jsonl", data), inputs=150, seconds=20) > 100


@pytest.mark.slow
def test_paragraphs(tmp_path: Path) -> None:
    good = ["\n\n".join(map(text, range(20))).encode(), "\r\n\r\n".join(map(text, range(30, 60))).encode() + b"\n"]
    assert fuzz("paragraphs", good, lambda data: read_paragraphs(tmp_path / "c.txt", data), inputs=100, seconds=15) > 60
