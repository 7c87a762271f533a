"""The corpus made from the interpreter's own library."""

import json
import sysconfig
from pathlib import Path

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.stdlib_corpus import HELDOUT_SHARE, SKIPPED_FOLDERS, write_stdlib_corpus
from tests.data.conftest import files_in


def read(path: str) -> dict[str, str]:
    with open(path, encoding="utf-8") as stream:
        records = [json.loads(line) for line in stream]
    return {record["source"]: record["text"] for record in records}


def test_whole_library(tmp_path: Path) -> None:
    corpus = write_stdlib_corpus(str(tmp_path / "folder"))
    train, heldout = read(corpus.train_path), read(corpus.heldout_path)
    assert files_in(tmp_path / "folder") == ["heldout.jsonl", "train.jsonl"]
    assert (len(train), len(heldout)) == (corpus.train_documents, corpus.heldout_documents)
    assert sum(len(text.encode()) for text in train.values()) == corpus.train_bytes > 3_000_000
    assert not train.keys() & heldout.keys()
    assert list(train) == sorted(train)
    assert not any(set(source.split("/")[:-1]) & SKIPPED_FOLDERS for source in train | heldout)
    share = corpus.heldout_bytes / (corpus.train_bytes + corpus.heldout_bytes)
    assert 0.5 * HELDOUT_SHARE < share <= HELDOUT_SHARE
    text = Path(sysconfig.get_path("stdlib"), "argparse.py").read_bytes().decode()
    assert (train | heldout)["argparse.py"] == text


def test_bounded_corpus_is_the_same_every_time_and_a_cross_section(tmp_path: Path) -> None:
    first = write_stdlib_corpus(str(tmp_path / "a"), max_bytes=300_000)
    again = write_stdlib_corpus(str(tmp_path / "b"), max_bytes=300_000)
    for name in ("train.jsonl", "heldout.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert first.train_bytes == again.train_bytes
    assert 250_000 < first.train_bytes + first.heldout_bytes <= 300_000
    assert first.heldout_documents >= 1
    assert len({source[0] for source in read(first.train_path)}) > 5


def test_bound_too_small_for_two_modules(tmp_path: Path) -> None:
    with pytest.raises(CompeteError, match="fewer than two"):
        write_stdlib_corpus(str(tmp_path / "a"), max_bytes=5)
    assert not (tmp_path / "a").exists()
