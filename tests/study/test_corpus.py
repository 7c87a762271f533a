"""A study's text and its byte-level tokenizer."""

import json
from pathlib import Path

import numpy as np
import pytest

from megatron_compete.data.megatron_tokenizer import TokenizerChoice
from megatron_compete.study import corpus
from megatron_compete.study.config import Corpus
from megatron_compete.study.corpus import digest_of, is_prepared, prepare_corpus, write_byte_tokenizer

TEXT = "def f(x):\n\treturn 'ä€😀' + x  # \x00\x7f  two  spaces\r\n"


def test_a_token_is_a_byte(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path / "tokenizer")
    tokenizer = TokenizerChoice("HuggingFaceTokenizer", str(tmp_path / "tokenizer")).build()
    ids = tokenizer.tokenize(TEXT)
    assert len(ids) == len(TEXT.encode()) and len(set(ids)) == len(set(TEXT.encode()))
    assert tokenizer.detokenize(ids) == TEXT
    assert tokenizer.vocab_size == 257 and tokenizer.eod == 256


def test_the_corpus_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Corpus(max_bytes=150_000)
    assert not is_prepared(settings, tmp_path)
    prepared = prepare_corpus(settings, tmp_path)
    assert is_prepared(settings, tmp_path) and not is_prepared(Corpus(max_bytes=160_000), tmp_path)
    documents = [json.loads(line)["text"] for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    tokens = np.fromfile(f"{prepared.train}.bin", np.uint16)
    assert len(tokens) == sum(len(text.encode()) + 1 for text in documents) <= 150_000 + len(documents)
    assert prepared.arguments()["data-path"] == prepared.train and prepared.heldout != prepared.train
    assert prepared.digest == digest_of(prepared.train, prepared.heldout)

    def not_again(*_: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(corpus, "preprocess", not_again)
    assert prepare_corpus(settings, tmp_path) == prepared
    with pytest.raises(AssertionError, match="made again"):
        prepare_corpus(Corpus(max_bytes=160_000), tmp_path)


def test_a_dataset_that_is_there_is_taken(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.bin").write_bytes(name.encode())
    prepared = prepare_corpus(Corpus(train=str(tmp_path / "a"), heldout=str(tmp_path / "b")), tmp_path / "none")
    assert prepared.tokenizer == {} and not (tmp_path / "none").exists()
    assert prepared.digest != digest_of(str(tmp_path / "b"), str(tmp_path / "a"))
