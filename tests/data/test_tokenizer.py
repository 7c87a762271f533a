"""SentencePiece training: lossless, repeatable, and clear about vocabularies that do not fit."""

import re
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.stdlib_corpus import StdlibCorpus
from megatron_compete.data.tokenizer import BOS_ID, EOS_ID, UNK_ID, TokenizerTraining, main, train_tokenizer
from tests.data.conftest import VOCAB_SIZE, WriteCorpus, files_in

ODD_TEXTS = [
    "",
    " ",
    "  leading and trailing  ",
    "\n",
    "\n\n \n",
    "\t\tif x:\n\t\t\treturn y\r\n",
    "def f(x):\n\n        return x\n",
    "\r",
    "\x00 \x00a",
    "<s></s><unk><pad><0x41><0x0A>",
    "\ufeffmark",
    "é e\u0301 \ufb01 \u2460 \u212b \uff21",
    "\u2028\u2029\u0085\u00a0\u3000\u200b",
    "🙂👨\u200d👩\u200d👧 \U0010ffff \uffff \ufffd",
    "中文，日本語、한국어 עברית العربية",
    "\u2585 \ue000",
    "a" * 5000 + " " * 5000 + "\n" * 500,
]


@pytest.fixture(scope="session")
def processor(tokenizer_model: str) -> Any:
    return sentencepiece.SentencePieceProcessor(model_file=tokenizer_model)


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_round_trip_of_odd_texts(processor: Any, text: str) -> None:
    ids = processor.encode(text)
    assert processor.decode(ids) == text
    assert not set(ids) & {UNK_ID, BOS_ID, EOS_ID}


@settings(max_examples=200)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")))
def test_round_trip_of_any_text(processor: Any, text: str) -> None:
    assert processor.decode(processor.encode(text)) == text


def test_round_trip_of_the_heldout_sources(processor: Any, stdlib_corpus: StdlibCorpus) -> None:
    text = Path(stdlib_corpus.heldout_path).read_text(encoding="utf-8")
    assert processor.decode(processor.encode(text)) == text


def test_the_one_character_that_is_lost(processor: Any) -> None:
    """Fails when SentencePiece learns to tell U+2581 from a space; then the docs can promise every text."""
    assert processor.decode(processor.encode("\u2581")) == " "


def test_special_ids_and_what_megatron_takes_as_end_of_document(processor: Any, tokenizer_model: str) -> None:
    from megatron_compete.data.megatron_tokenizer import TokenizerChoice

    assert processor.get_piece_size() == VOCAB_SIZE
    assert (processor.unk_id(), processor.bos_id(), processor.eos_id(), processor.pad_id()) == (0, 1, 2, -1)
    tokenizer = TokenizerChoice("SentencePieceTokenizer", tokenizer_model).build()
    assert tokenizer.eod == EOS_ID
    assert tokenizer.tokenize("a\n  b") == processor.encode("a\n  b")


def test_newlines_and_indentation_are_learnt(processor: Any) -> None:
    pieces = [processor.id_to_piece(index) for index in range(VOCAB_SIZE)]
    assert "\n\n" in pieces and "):\n" in pieces
    assert "\u2581" * 4 in pieces and "\u2581" * 8 in pieces


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_same_corpus_same_bytes(stdlib_corpus: StdlibCorpus, tmp_path: Path, model_type: str) -> None:
    for name in ("a", "b"):
        train_tokenizer(
            TokenizerTraining(
                (stdlib_corpus.train_path,),
                str(tmp_path / f"{name}.model"),
                500,
                model_type=model_type,
                sample_bytes=60_000,
            )
        )
    assert files_in(tmp_path) == ["a.model", "a.vocab", "b.model", "b.vocab"]
    for suffix in ("model", "vocab"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_bpe_pieces_do_not_depend_on_threads(stdlib_corpus: StdlibCorpus, tmp_path: Path) -> None:
    for threads in (1, 2):
        train_tokenizer(
            TokenizerTraining((stdlib_corpus.heldout_path,), str(tmp_path / f"{threads}"), 500, threads=threads)
        )
    assert (tmp_path / "1.vocab").read_bytes() == (tmp_path / "2.vocab").read_bytes()


def test_vocab_file_has_one_piece_a_line(processor: Any, tokenizer_model: str) -> None:
    lines = Path(tokenizer_model.replace(".model", ".vocab")).read_text(encoding="utf-8").split("\n")[:-1]
    assert len(lines) == VOCAB_SIZE
    unescaped = [re.sub(r"\\(.)", lambda found: {"n": "\n", "r": "\r"}.get(found[1], found[1]), line) for line in lines]
    assert [line.split("\t")[0] for line in unescaped] == [processor.id_to_piece(index) for index in range(VOCAB_SIZE)]


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_too_large_says_the_largest_that_fits(write_corpus: WriteCorpus, tmp_path: Path, model_type: str) -> None:
    path = write_corpus([{"text": "the quick brown fox jumps over the lazy dog\n" * 3}])
    job = {"inputs": (path,), "output": str(tmp_path / "t"), "model_type": model_type}
    with pytest.raises(CompeteError, match="--vocab-size 5000 is too large") as caught:
        train_tokenizer(TokenizerTraining(vocab_size=5000, **job))
    assert files_in(tmp_path) == ["corpus.jsonl"]
    largest = int(re.search(r"largest that fits is (\d+)", str(caught.value))[1])
    assert train_tokenizer(TokenizerTraining(vocab_size=largest, **job)).vocab_size == largest


def test_too_small_says_what_the_alphabet_takes(stdlib_corpus: StdlibCorpus, tmp_path: Path) -> None:
    job = {"inputs": (stdlib_corpus.heldout_path,), "output": str(tmp_path / "t")}
    with pytest.raises(CompeteError, match="--vocab-size 300 is too small") as caught:
        train_tokenizer(TokenizerTraining(vocab_size=300, **job))
    needed = int(re.search(r"take (\d+)", str(caught.value))[1])
    assert train_tokenizer(TokenizerTraining(vocab_size=needed + 1, **job)).vocab_size == needed + 1


def test_split_digits_and_no_byte_fallback(stdlib_corpus: StdlibCorpus, tmp_path: Path) -> None:
    trained = train_tokenizer(
        TokenizerTraining((stdlib_corpus.train_path,), str(tmp_path / "t"), 800, split_digits=True, byte_fallback=False)
    )
    processor = sentencepiece.SentencePieceProcessor(model_file=trained.model_path)
    assert processor.encode("2024", out_type=str) == ["2", "0", "2", "4"]
    assert UNK_ID in processor.encode("\u4e2d")


def test_user_defined_symbols(stdlib_corpus: StdlibCorpus, tmp_path: Path) -> None:
    symbols = ["<|im_start|>", "two words", ","]
    main(
        [
            *("--input", stdlib_corpus.heldout_path, "--output-prefix", str(tmp_path / "t"), "--vocab-size", "600"),
            *("--user-defined-symbols", *symbols),
        ]
    )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "t.model"))
    ids = [processor.piece_to_id(symbol.replace(" ", "\u2581")) for symbol in symbols]
    text = "x<|im_start|>two words, y"
    assert processor.get_piece_size() == 600 and UNK_ID not in ids
    assert processor.encode(text)[1:4] == ids and processor.decode(processor.encode(text)) == text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocab_size": 0}, "--vocab-size 0"),
        ({"model_type": "word"}, "--model-type word"),
        ({"character_coverage": 0.5}, "--character-coverage 0.5"),
        ({"threads": 0}, "--threads 0"),
        ({"sample_bytes": -1}, "--sample-bytes -1"),
        ({"user_defined_symbols": ("",)}, "--user-defined-symbols '': name it"),
        ({"user_defined_symbols": ("a", "a")}, "--user-defined-symbols 'a': name it once"),
        ({"user_defined_symbols": ("</s>",)}, "</s>': this is a piece that text must not turn into"),
        ({"user_defined_symbols": ("<a>,<b>",)}, "words of their own, without commas"),
    ],
)
def test_values_that_cannot_be_used(change: dict[str, Any], words: str) -> None:
    with pytest.raises(CompeteError, match=words):
        TokenizerTraining(**({"inputs": ("x",), "output": "y", "vocab_size": 1000} | change))


def test_malformed_lines_in_both_modes(
    write_corpus: WriteCorpus, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = write_corpus([{"text": "some words of text\n" * 9}, {"txt": "b"}, {"text": "more words\n"}])
    flags = ["--input", path, "--output-prefix", str(tmp_path / "t"), "--vocab-size", "285"]
    with pytest.raises(CompeteError, match=r"corpus\.jsonl:2: no key 'text'"):
        main(flags)
    assert files_in(tmp_path) == ["corpus.jsonl"]
    main([*flags, "--on-error", "skip"])
    captured = capsys.readouterr()
    assert "skipped 1 missing_key, the first at" in captured.err
    assert "285 pieces from 2 documents" in captured.out and "skipped 1 documents (1 missing_key)" in captured.out
    assert files_in(tmp_path) == ["corpus.jsonl", "t.model", "t.vocab"]


@pytest.mark.parametrize("records", [[{"text": ""}], ["", "  "], ["{"]])
def test_corpus_without_text(write_corpus: WriteCorpus, tmp_path: Path, records: list[object]) -> None:
    job = TokenizerTraining((write_corpus(records),), str(tmp_path / "t"), 300, on_error="skip")
    with pytest.raises(CompeteError, match="no document with any text"):
        train_tokenizer(job)


def test_place_that_cannot_be_written_to(stdlib_corpus: StdlibCorpus) -> None:
    job = TokenizerTraining((stdlib_corpus.heldout_path,), stdlib_corpus.train_path + "/below_a_file", 500)
    with pytest.raises(CompeteError, match=r"train\.jsonl"):
        train_tokenizer(job)
