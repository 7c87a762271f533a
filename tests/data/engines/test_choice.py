"""The default is exact; an engine that is named is checked before and while it works."""

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.engines import (
    AUTO,
    CHECK_EVERY,
    REFERENCE,
    SPLIT,
    BatchEncoder,
    EngineChoice,
    EngineDiffers,
    choose_engine,
    make_encoder,
)
from megatron_compete.data.megatron_tokenizer import TokenizerChoice

pytest.importorskip("kitoken")
pytest.importorskip("gigatoken")


@pytest.mark.parametrize(
    ("kind", "engine"),
    [("sentencepiece", SPLIT), ("hugging_face", REFERENCE), ("with_bos", REFERENCE), ("tiktoken", REFERENCE)],
)
def test_the_default_is_exact(choices: dict[str, TokenizerChoice], kind: str, engine: str) -> None:
    tokenizer = choices[kind].build()
    chosen = choose_engine(choices[kind], AUTO, tokenizer, [])
    assert (chosen.name, chosen.requested, chosen.proof, chosen.exact) == (engine, AUTO, None, True)
    text = "def f(x):\n    return x  # <s> \u00e9"
    assert [list(ids) for ids in make_encoder(choices[kind], tokenizer, chosen).encode_batch([text])] == [
        tokenizer.tokenize(text)
    ]
    assert ("exact by construction" in chosen.describe()) == (engine == SPLIT)
    assert engine == SPLIT or "split: it is for SentencePiece models" in chosen.describe()


def test_the_default_where_texts_cannot_be_split(tokenizer_model: str) -> None:
    for choice, words in (
        (TokenizerChoice("NullTokenizer", vocab_size=100), "for SentencePiece models"),
        (TokenizerChoice("SentencePieceTokenizer", tokenizer_model, tokenizer_sentencepiece_legacy=True), "legacy"),
    ):
        chosen = choose_engine(choice, AUTO, choice.build(), [])
        assert chosen.name == REFERENCE and words in chosen.passed_over[SPLIT]
        with pytest.raises(CompeteError, match=f"--tokenizer-engine split with .*{words}"):
            choose_engine(choice, SPLIT, choice.build(), [])


def test_a_named_engine_passes_the_sample_first(choices: dict[str, TokenizerChoice], texts: list[str]) -> None:
    choice = choices["hugging_face"]
    engine = choose_engine(choice, "gigatoken", choice.build(), texts)
    assert (engine.name, engine.requested, engine.exact) == ("gigatoken", "gigatoken", False)
    assert engine.proof is not None and engine.proof["documents"] == len(texts)
    assert "gigatoken, as you named it: identical to the reference on" in engine.describe()
    again = EngineChoice.from_record(json.loads(json.dumps(engine.record() | {"checked": 5})))
    assert again.record() == engine.record()


def test_a_named_engine_that_differs_is_refused(texts: list[str], tmp_path: Path) -> None:
    model = tmp_path / "unigram.model"
    with open(model, "wb") as stream:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts[0].split("\n")), model_writer=stream, vocab_size=300, minloglevel=2
        )
    choice = TokenizerChoice("SentencePieceTokenizer", str(model))
    for name, words in (("kitoken", "is not identical to"), ("gigatoken", "unigram")):
        with pytest.raises(CompeteError, match=f"--tokenizer-engine {name}.*{words}.*leave the flag out"):
            choose_engine(choice, name, choice.build(), texts)
    chosen = choose_engine(choice, AUTO, choice.build(), texts)
    assert chosen.name == REFERENCE and chosen.passed_over == {SPLIT: "it is no BPE model"}


def test_not_installed(choices: dict[str, TokenizerChoice], texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "kitoken", None)
    choice = choices["sentencepiece"]
    tokenizer = choice.build()
    with pytest.raises(CompeteError, match=r"--tokenizer-engine kitoken with .*not installed.* pip install kitoken"):
        choose_engine(choice, "kitoken", tokenizer, texts)
    assert choose_engine(choice, REFERENCE, tokenizer, texts) == EngineChoice(REFERENCE)


def lengths(texts: list[str]) -> list[list[int]]:
    """A reference for these tests: a text's length."""
    return [[len(text)] for text in texts]


def encoder(wrong: Any) -> BatchEncoder:
    """One that checks against `lengths`."""
    return BatchEncoder(EngineChoice("kitoken", "kitoken"), wrong, lengths)


def test_checked_texts_depend_on_shard_and_place_alone() -> None:
    def checked_with(batch: int) -> list[str]:
        seen: list[str] = []

        def reference(texts: list[str]) -> list[list[int]]:
            seen.extend(texts)
            return lengths(texts)

        one = BatchEncoder(EngineChoice("kitoken", "kitoken"), lengths, reference)
        for shard in (3, 4, 0):
            one.start_shard(shard)
            texts = [f"{shard} {index}" for index in range(1000)]
            for start in range(0, 1000, batch):
                one.encode_batch(texts[start : start + batch])
        assert one.checked == len(seen)
        return seen

    assert checked_with(7) == checked_with(300) == checked_with(1000)
    assert len(checked_with(50)) in range(9, 13)


def test_short_shards_are_checked_as_often() -> None:
    one = encoder(lengths)
    for shard in range(CHECK_EVERY):
        one.start_shard(shard)
        one.encode_batch(["text"])
    assert one.checked == 1


def test_a_difference_is_raised() -> None:
    one = encoder(lambda texts: [[len(text) + (text == "bad")] for text in texts])
    one.start_shard(0)
    one.encode_batch(["fine", *["bad"] * (CHECK_EVERY - 1)])
    with pytest.raises(EngineDiffers, match=f"kitoken differs .* text {CHECK_EVERY} of shard 0: token 0 is 4 where"):
        one.encode_batch(["bad"])
    after = EngineChoice("kitoken", "kitoken", {"difference": None}).dismissed("token 0 is 4")
    assert (after.name, after.requested, after.passed_over) == (REFERENCE, "kitoken", {"kitoken": "token 0 is 4"})


def test_an_engine_that_fails() -> None:
    class Panic(BaseException):
        """As pyo3 raises it."""

    def panic(texts: list[str]) -> list[list[int]]:
        raise Panic("index out of range")

    with pytest.raises(EngineDiffers, match=r"fails where the reference does not \(index out of range\)"):
        encoder(panic).encode_batch(["a"])


def test_what_the_reference_refuses_stays_refused() -> None:
    choice = TokenizerChoice("NullTokenizer", vocab_size=100)
    one = make_encoder(choice, choice.build(), EngineChoice(REFERENCE))
    with pytest.raises(ValueError, match="invalid literal"):
        one.encode_batch(["no number"])
