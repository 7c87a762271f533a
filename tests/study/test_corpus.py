"""A study's text and its byte-level tokenizer."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.megatron_tokenizer import TokenizerChoice
from megatron_compete.study import corpus
from megatron_compete.study.ciphers import ASCII, cipher
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


def test_an_enciphered_corpus_is_the_same_text(tmp_path: Path) -> None:
    plain, settings = Corpus(max_bytes=300_000), Corpus(max_bytes=300_000, ciphers=3)
    prepared = {one: prepare_corpus(one, tmp_path / str(one.ciphers)) for one in (plain, settings)}
    assert not is_prepared(plain, tmp_path / "3") and not is_prepared(
        Corpus(max_bytes=300_000, ciphers=4), tmp_path / "3"
    )
    assert prepared[plain].digest != prepared[settings].digest
    for part in ("train", "heldout"):
        with (tmp_path / "3" / f"{part}.jsonl").open(encoding="utf-8") as stream:
            written = [json.loads(line) for line in stream]
        with (tmp_path / "None" / f"{part}.jsonl").open(encoding="utf-8") as stream:
            texts = {one["source"]: one["text"] for one in map(json.loads, stream)}
        assert {one["cipher"] for one in written} == {0, 1, 2}
        back = dict.fromkeys(texts, "")
        for one in written:
            inverse = {image: symbol for symbol, image in cipher(one["cipher"]).items()}
            back[one["source"].rpartition(":")[0]] += one["text"].translate(inverse)
        assert back == texts
        tokens = np.fromfile(
            f"{prepared[settings].train if part == 'train' else prepared[settings].heldout}.bin", np.uint16
        )
        assert len(tokens) == sum(len(one["text"].encode()) + 1 for one in written)


def test_ciphers_hide_which_symbol_a_byte_is(tmp_path: Path) -> None:
    """No byte stands out as the space does in plain text: the spaces of 8 ciphers are the 8 most frequent bytes."""
    prepare_corpus(Corpus(max_bytes=400_000, ciphers=8), tmp_path)
    with (tmp_path / "train.jsonl").open(encoding="utf-8") as stream:
        counts = Counter("".join(json.loads(line)["text"] for line in stream))
    spaces = {chr(cipher(number)[ord(" ")]) for number in range(8)}
    assert {symbol for symbol, _ in counts.most_common(len(spaces))} == spaces
    assert counts.most_common(1)[0][1] < 0.12 * sum(counts.values())
    assert set(ASCII) <= set(counts)


def test_more_ciphers_than_pieces_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        CompeteError, match=r"corpus.ciphers 500 is more than the \d+ pieces of text in train.jsonl: raise max-bytes"
    ):
        prepare_corpus(Corpus(max_bytes=150_000, ciphers=500), tmp_path)


def test_letters_are_what_the_ciphers_permute(tmp_path: Path) -> None:
    plain, settings = (
        Corpus(max_bytes=300_000, ciphers=3),
        Corpus(max_bytes=300_000, ciphers=3, cipher_alphabet="letters"),
    )
    prepared = prepare_corpus(settings, tmp_path)
    assert is_prepared(settings, tmp_path) and not is_prepared(plain, tmp_path)
    assert len(np.unique(np.fromfile(f"{prepared.train}.bin", np.uint16))) == 28  # 27 symbols and the end of a document
