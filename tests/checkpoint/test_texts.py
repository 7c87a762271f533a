"""Texts that a conversion is checked on."""

from pathlib import Path

import pytest

from megatron_compete.checkpoint.texts import read_documents
from megatron_compete.common.errors import CompeteError


def test_lines_are_documents_and_a_plain_file_is_one(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one\\ntwo"}\n\n{"text": "three", "id": 1}\n')
    assert read_documents(tmp_path / "a.jsonl", "--text") == ["one\ntwo", "three"]
    (tmp_path / "a.txt").write_bytes(b"one\ntwo \xff")
    assert read_documents(tmp_path / "a.txt", "--text") == ["one\ntwo �"]


def test_half_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b"}')
    assert read_documents(tmp_path / "a.jsonl", "--text") == ["a?b"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"text": "a"}\n{"body": "b"}', 'line 2 is not a JSON object with a "text"'),
        ('{"text": 7}', "line 1 is not a JSON object"),
        ("[" * 100_000, "line 1 is not a JSON object"),
        ('{"text": " "}\n', "holds no text"),
        ("", "holds no text"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(CompeteError, match=f"--text .*{says}"):
        read_documents(tmp_path / "a.jsonl", "--text")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CompeteError, match=r"--text .*none\.txt cannot be read: No such file"):
        read_documents(tmp_path / "none.txt", "--text")
