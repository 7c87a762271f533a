"""Engines give the reference's ids, or are caught."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

from megatron_compete.common.errors import CompeteError
from megatron_compete.data import engines, engines_load
from megatron_compete.data.engines import (
    CHECK_EVERY,
    REFERENCE,
    BatchEncoder,
    EngineChoice,
    EngineDiffers,
    choose_engine,
    make_encoder,
)
from megatron_compete.data.engines_load import CannotLoad, load_engine
from megatron_compete.data.engines_proof import compare, encode_reference
from megatron_compete.data.megatron_tokenizer import TokenizerChoice
from megatron_compete.data.stdlib_corpus import StdlibCorpus
from tests.data.tokenizer_kinds import EOS, hugging_face_folder, tiktoken_file, train_byte_level, with_bos

pytest.importorskip("kitoken")
pytest.importorskip("gigatoken")


@pytest.fixture(scope="module")
def texts(stdlib_corpus: StdlibCorpus) -> list[str]:
    lines = Path(stdlib_corpus.train_path).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


@pytest.fixture(scope="module")
def choices(texts: list[str], tokenizer_model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("tokenizers")
    byte_level = train_byte_level(texts)
    return {
        "sentencepiece": TokenizerChoice("SentencePieceTokenizer", tokenizer_model),
        "tiktoken": tiktoken_file(folder, byte_level),
        "hugging_face": hugging_face_folder(folder / "plain", byte_level),
        "with_bos": hugging_face_folder(folder / "bos", with_bos(byte_level)),
    }


@pytest.mark.parametrize(
    ("kind", "engine"),
    [
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


def test_auto_takes_an_identical_engine_and_says_so(
    choices: dict[str, TokenizerChoice], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = choices["hugging_face"]
    monkeypatch.setattr(engines, "compare", lambda *both: replace(compare(*both), speed=3.0))
    engine = choose_engine(choice, "auto", choice.build(), texts)
    assert (engine.name, engine.requested, engine.proven) == ("gigatoken", "auto", True)
    assert engine.proof is not None and engine.proof["documents"] == len(texts)
    assert "kitoken" in engine.passed_over
    assert "gigatoken, identical to the reference on" in engine.describe()
    assert "3.0 times its speed; kitoken: it differs: " in engine.describe()
    again = EngineChoice.from_record(json.loads(json.dumps(engine.record() | {"checked": 5})))
    assert again.record() == engine.record()


def test_auto_takes_the_fastest_of_the_identical_and_none_that_is_slower(
    choices: dict[str, TokenizerChoice], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = choices["sentencepiece"]
    tokenizer = choice.build()
    for speeds, name in (((2.0, 3.0), "kitoken"), ((3.0, 2.0), "gigatoken"), ((0.9, 0.8), REFERENCE)):
        rest = iter(speeds)
        monkeypatch.setattr(engines, "compare", lambda *both, rest=rest: replace(compare(*both), speed=next(rest)))
        engine = choose_engine(choice, "auto", tokenizer, texts[:5])
        assert engine.name == name
        assert all(reason.startswith("identical, ") for reason in engine.passed_over.values())
        assert len(engine.passed_over) == (2 if name == REFERENCE else 1)


def test_auto_passes_over_what_differs_or_cannot_load(texts: list[str], tmp_path: Path) -> None:
    model = tmp_path / "unigram.model"
    with open(model, "wb") as stream:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts[0].split("\n")), model_writer=stream, vocab_size=300, minloglevel=2
        )
    choice = TokenizerChoice("SentencePieceTokenizer", str(model))
    engine = choose_engine(choice, "auto", choice.build(), texts)
    assert (engine.name, engine.proof) == (REFERENCE, None)
    assert "unigram" in engine.passed_over["gigatoken"] and "it differs: " in engine.passed_over["kitoken"]


def test_not_installed(choices: dict[str, TokenizerChoice], texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("kitoken", "gigatoken"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    choice = choices["sentencepiece"]
    tokenizer = choice.build()
    engine = choose_engine(choice, "auto", tokenizer, texts)
    assert engine.name == REFERENCE
    assert all("not installed" in reason for reason in engine.passed_over.values())
    with pytest.raises(CompeteError, match=r"--tokenizer-engine kitoken with .*not installed.* pip install kitoken"):
        choose_engine(choice, "kitoken", tokenizer, texts)
    assert choose_engine(choice, REFERENCE, tokenizer, texts) == EngineChoice(REFERENCE)


def test_kinds_without_a_fast_engine(tokenizer_model: str) -> None:
    for choice, words in (
        (TokenizerChoice("NullTokenizer", vocab_size=100), "numbers"),
        (TokenizerChoice("SentencePieceTokenizer", tokenizer_model, tokenizer_sentencepiece_legacy=True), "legacy"),
    ):
        tokenizer = choice.build()
        with pytest.raises(CannotLoad, match=words):
            load_engine("gigatoken", choice, tokenizer)
        engine = choose_engine(choice, "auto", tokenizer, ["1 2 3"])
        assert [list(ids) for ids in make_encoder(choice, tokenizer, engine).encode_batch(["4 5"])] == [
            tokenizer.tokenize("4 5")
        ]
    assert choose_engine(choice, "auto", tokenizer, []).name == REFERENCE


def lengths(texts: list[str]) -> list[list[int]]:
    """A reference for these tests: a text's length."""
    return [[len(text)] for text in texts]


def encoder(wrong: Any, strict: bool) -> BatchEncoder:
    """One that checks against `lengths`."""
    choice = EngineChoice("kitoken", "auto" if strict else "kitoken")
    return BatchEncoder(choice, wrong, lengths, strict)


def test_checked_texts_depend_on_shard_and_place_alone() -> None:
    def checked_with(batch: int) -> list[str]:
        seen: list[str] = []

        def reference(texts: list[str]) -> list[list[int]]:
            seen.extend(texts)
            return lengths(texts)

        one = BatchEncoder(EngineChoice("kitoken", "auto"), lengths, reference, True)
        for shard in (3, 4, 0):
            one.start_shard(shard)
            texts = [f"{shard} {index}" for index in range(1000)]
            for start in range(0, 1000, batch):
                one.encode_batch(texts[start : start + batch])
        assert one.checked == len(seen) and one.differing == 0
        return seen

    assert checked_with(7) == checked_with(300) == checked_with(1000)
    assert len(checked_with(50)) in range(9, 13)


def test_short_shards_are_checked_as_often() -> None:
    one = encoder(lengths, True)
    for shard in range(CHECK_EVERY):
        one.start_shard(shard)
        one.encode_batch(["text"])
    assert one.checked == 1


def test_a_difference_is_raised_under_auto_and_counted_otherwise() -> None:
    def wrong(texts: list[str]) -> list[list[int]]:
        return [[len(text) + (text == "bad")] for text in texts]

    strict, lenient = encoder(wrong, True), encoder(wrong, False)
    for one in (strict, lenient):
        one.start_shard(0)
        one.encode_batch(["fine", *["bad"] * (CHECK_EVERY - 1)])
    with pytest.raises(EngineDiffers, match=f"kitoken differs .* text {CHECK_EVERY} of shard 0: token 0 is 4 where"):
        strict.encode_batch(["bad"])
    assert lenient.encode_batch(["bad"]) == [[4]]
    assert (lenient.checked, lenient.differing) == (2, 1)
    after = EngineChoice("kitoken", "auto", {"difference": None}).dismissed("token 0 is 4")
    assert (after.name, after.requested, after.passed_over) == (REFERENCE, "auto", {"kitoken": "token 0 is 4"})


def test_an_engine_that_fails() -> None:
    class Panic(BaseException):
        """As pyo3 raises it."""

    def panic(texts: list[str]) -> list[list[int]]:
        raise Panic("index out of range")

    with pytest.raises(EngineDiffers, match=r"fails where the reference does not \(index out of range\)"):
        encoder(panic, True).encode_batch(["a"])
    lenient = encoder(panic, False)
    assert lenient.encode_batch(["a", "bb"]) == [[1], [2]] and lenient.differing == 2
    compared = compare(panic, encode_reference(lengths, ["a"]))  # type: ignore[arg-type]
    assert compared.differing_documents == 1 and "it fails: index out of range" in str(compared.difference)


def test_what_the_reference_refuses_stays_refused() -> None:
    choice = TokenizerChoice("NullTokenizer", vocab_size=100)
    one = make_encoder(choice, choice.build(), EngineChoice(REFERENCE))
    with pytest.raises(ValueError, match="invalid literal"):
        one.encode_batch(["no number"])


def test_gigatoken_is_built_anew_before_it_remembers_too_much(
    choices: dict[str, TokenizerChoice], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines_load, "CACHE_BYTES", 1000)
    builds = []

    def build() -> Any:
        from gigatoken import Tokenizer

        builds.append(1)
        return Tokenizer(str(Path(str(choices["hugging_face"].tokenizer_model)) / "tokenizer.json"))

    engine = engines_load._Gigatoken(build)
    ids = [engine([text])[0] for text in texts[:5]]
    assert len(builds) == 6
    expected = engines.load_engine(REFERENCE, choices["hugging_face"], choices["hugging_face"].build())(texts[:5])
    assert all(np.array_equal(one, other) for one, other in zip(ids, expected))
