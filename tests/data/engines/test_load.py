"""Engines give the reference's ids, whatever the kind of tokenizer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_compete.data.engines import REFERENCE, load
from megatron_compete.data.engines.load import CannotLoad, load_engine
from megatron_compete.data.engines.sample_check import compare, encode_reference
from megatron_compete.data.megatron_tokenizer import TokenizerChoice
from tests.data.tokenizer_kinds import EOS

pytest.importorskip("kitoken")
pytest.importorskip("gigatoken")


@pytest.mark.parametrize(
    ("kind", "engine"),
    [
        ("sentencepiece", "split"),
        ("sentencepiece", "kitoken"),
        ("sentencepiece", "gigatoken"),
        ("hugging_face", "gigatoken"),
        ("with_bos", "gigatoken"),
        ("tiktoken", "kitoken"),
        ("tiktoken", "gigatoken"),
    ],
)
def test_identical_on_the_corpus_and_on_odd_strings(
    choices: dict[str, TokenizerChoice], texts: list[str], kind: str, engine: str
) -> None:
    choice = choices[kind]
    tokenizer = choice.build()
    expected = encode_reference(load_engine(REFERENCE, choice, tokenizer), texts)
    assert len(expected.strings) > 4000
    assert [list(ids) for ids in expected.document_ids] == [tokenizer.tokenize(text) for text in texts]
    compared = compare(load_engine(engine, choice, tokenizer), expected)
    assert compared.difference is None
    assert (compared.documents, compared.differing_documents, compared.differing_strings) == (len(texts), 0, 0)


def test_written_out_specials(choices: dict[str, TokenizerChoice]) -> None:
    """Control pieces in a text are ordinary text to SentencePiece, and tokens to the others."""
    for kind, texts in (
        ("sentencepiece", ["a", "<s>", "x</s> <0x41> <unk>", "", "b" * 9]),
        ("tiktoken", ["<SPECIAL_44>a<s>"]),
        ("hugging_face", [f"a{EOS}b"]),
    ):
        tokenizer = choices[kind].build()
        encode = load_engine("gigatoken", choices[kind], tokenizer)
        assert [list(ids) for ids in encode(texts)] == [tokenizer.tokenize(text) for text in texts]


def test_kinds_without_a_fast_engine(tokenizer_model: str) -> None:
    for choice, words in (
        (TokenizerChoice("NullTokenizer", vocab_size=100), "numbers"),
        (TokenizerChoice("SentencePieceTokenizer", tokenizer_model, tokenizer_sentencepiece_legacy=True), "legacy"),
    ):
        with pytest.raises(CannotLoad, match=words):
            load_engine("gigatoken", choice, choice.build())


def test_gigatoken_is_built_anew_before_it_remembers_too_much(
    choices: dict[str, TokenizerChoice], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "CACHE_BYTES", 1000)
    builds = []

    def build() -> Any:
        from gigatoken import Tokenizer

        builds.append(1)
        return Tokenizer(str(Path(str(choices["hugging_face"].tokenizer_model)) / "tokenizer.json"))

    engine = load._Gigatoken(build)
    ids = [engine([text])[0] for text in texts[:5]]
    assert len(builds) == 6
    expected = load_engine(REFERENCE, choices["hugging_face"], choices["hugging_face"].build())(texts[:5])
    assert all(np.array_equal(one, other) for one, other in zip(ids, expected))
