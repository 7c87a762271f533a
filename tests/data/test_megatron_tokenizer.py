"""The tokenizer that Megatron's flags name."""

import inspect
import json
import re
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import sentencepiece

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.megatron_tokenizer import _OTHER_DEFAULTS, SENTENCEPIECE_TYPES, TokenizerChoice
from megatron_compete.data.stdlib_corpus import StdlibCorpus
from tests.data.conftest import VOCAB_SIZE
from tests.data.tokenizer_kinds import (
    EOS,
    bert_files,
    gpt2_files,
    hugging_face_folder,
    tiktoken_file,
    train_byte_level,
    with_bos,
)

TEXT = "def f(x):\n    return x\n"


@pytest.fixture(scope="module")
def texts(stdlib_corpus: StdlibCorpus) -> list[str]:
    lines = Path(stdlib_corpus.heldout_path).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def test_namespace_has_every_argument_that_megatron_reads() -> None:
    from megatron.core.tokenizers.utils import build_tokenizer as module

    read = set(re.findall(r"\bargs\.(\w+)", inspect.getsource(module.build_tokenizer)))
    assert read <= vars(TokenizerChoice("x").arguments()).keys()
    assert set(module.SP_TOKENIZERS) == SENTENCEPIECE_TYPES


def test_defaults_are_the_trainers() -> None:
    from megatron.training.config.training_config import TokenizerConfig

    trainers = {field.name: field.default for field in fields(TokenizerConfig)}
    ours = _OTHER_DEFAULTS | {field.name: field.default for field in fields(TokenizerChoice)}
    shared = ours.keys() & trainers.keys() - {"pad_vocab_size", "tokenizer_type"}
    assert len(shared) > 14
    assert {name: ours[name] for name in shared} == {name: trainers[name] for name in shared}


def test_every_type_has_a_test_here() -> None:
    from megatron.core.tokenizers.utils.build_tokenizer import SUPPORTED_TOKENIZERS

    null = {"NullTokenizer", "NullMultimodalTokenizer"}
    files = {"HuggingFaceTokenizer", "SFTTokenizer", "TikTokenizer", "GPT2BPETokenizer"}
    bert = {"BertWordPieceLowerCase", "BertWordPieceCase"}
    assert set(SUPPORTED_TOKENIZERS) == SENTENCEPIECE_TYPES | null | files | bert | {"MultimodalTokenizer"}


def test_hugging_face_folder_and_sft(texts: list[str], tmp_path: Path) -> None:
    byte_level = train_byte_level(texts)
    plain = hugging_face_folder(tmp_path / "plain", byte_level)
    for kind in ("HuggingFaceTokenizer", "SFTTokenizer"):
        tokenizer = TokenizerChoice(kind, plain.tokenizer_model).build()
        assert tokenizer.tokenize(TEXT) == byte_level.encode(TEXT).ids
        assert (tokenizer.vocab_size, tokenizer.eod) == (600, 0)
        assert tokenizer.detokenize(tokenizer.tokenize(TEXT)) == TEXT


def test_special_tokens_around_a_document(texts: list[str], tmp_path: Path) -> None:
    choice = hugging_face_folder(tmp_path, with_bos(train_byte_level(texts)))
    assert choice.build().tokenize(TEXT)[0] == choice.build().eod
    without = TokenizerChoice(
        "HuggingFaceTokenizer", choice.tokenizer_model, tokenizer_hf_no_include_special_tokens=True
    )
    assert without.build().tokenize(TEXT) == choice.build().tokenize(TEXT)[1:]
    assert (choice.options, without.options) == ({}, {"tokenizer_hf_no_include_special_tokens": True})


def test_gpt2(texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    byte_level = train_byte_level(texts)
    choice = gpt2_files(tmp_path, byte_level)
    monkeypatch.chdir(tmp_path)
    tokenizer = choice.build()
    assert tokenizer.tokenize(TEXT) == byte_level.encode(TEXT).ids
    assert tokenizer.eod == tokenizer.tokenize(EOS)[0]


@pytest.mark.parametrize(
    ("kind", "ids"), [("BertWordPieceCase", [2, 6, 1, 9, 8, 10, 11, 12, 3]), ("BertWordPieceLowerCase", [2, 5, 3])]
)
def test_bert(kind: str, ids: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = bert_files(tmp_path, kind)
    monkeypatch.chdir(tmp_path)
    text = "Def f(x): return" if kind == "BertWordPieceCase" else "Def"
    assert choice.build().tokenize(text) == ids


def test_without_a_network_the_way_out_is_named(
    texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = gpt2_files(tmp_path, train_byte_level(texts))
    shutil.rmtree(tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CompeteError, match="from the hub as gpt2: without a network, --tokenizer-type HuggingFace"):
        choice.build()


def test_tiktoken(texts: list[str], tmp_path: Path) -> None:
    choice = tiktoken_file(tmp_path, train_byte_level(texts))
    tokenizer = choice.build()
    ids = tokenizer.tokenize(TEXT)
    assert (tokenizer.vocab_size, tokenizer.eod) == (choice.vocab_size, 2)
    assert min(ids) >= 1000 and tokenizer.detokenize(ids) == TEXT
    fewer = TokenizerChoice(
        "TikTokenizer",
        choice.tokenizer_model,
        vocab_size=(choice.vocab_size or 0) - 900,
        tiktoken_num_special_tokens=100,
        tiktoken_pattern="v1",
    )
    assert fewer.build().tokenize("ab") == [id_ - 900 for id_ in tokenizer.tokenize("ab")]
    assert fewer.options == {"tiktoken_num_special_tokens": 100, "tiktoken_pattern": "v1"}


def test_null_multimodal() -> None:
    tokenizer = TokenizerChoice("NullMultimodalTokenizer", vocab_size=100).build()
    assert (tokenizer.tokenize("1 2 3"), tokenizer.vocab_size, tokenizer.eod) == ([1, 2, 3], 101, 100)


def test_multimodal_cannot_be_built_upstream(tmp_path: Path) -> None:
    """Fails when Megatron's build_tokenizer gives this type its path; then the refusal can go."""
    from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer

    choice = TokenizerChoice("MultimodalTokenizer", str(tmp_path))
    with pytest.raises(AssertionError, match="Tokenizer path must be specified"):
        build_tokenizer(choice.arguments())
    with pytest.raises(CompeteError, match="--tokenizer-type HuggingFaceTokenizer --tokenizer-model FOLDER"):
        choice.build()


def test_sentencepiece_with_special_tokens_of_its_own(tokenizer_model: str) -> None:
    choice = TokenizerChoice(
        "SentencePieceTokenizer",
        tokenizer_model,
        special_tokens=("<extra>",),
        tokenizer_sentencepiece_legacy=True,
    )
    tokenizer = choice.build()
    assert tokenizer.vocab_size == VOCAB_SIZE + 1
    assert tokenizer.tokenize("a<extra>") == [*sentencepiece_ids(tokenizer_model, "a"), VOCAB_SIZE]
    assert choice.options == {"special_tokens": ["<extra>"], "tokenizer_sentencepiece_legacy": True}


def sentencepiece_ids(model: str, text: str) -> list[int]:
    return list(sentencepiece.SentencePieceProcessor(model_file=model).encode(text))


@pytest.mark.parametrize("tokenizer_type", sorted(SENTENCEPIECE_TYPES))
def test_sentencepiece_types_build_alike(tokenizer_type: str, tokenizer_model: str) -> None:
    choice = TokenizerChoice(tokenizer_type, tokenizer_model, vocab_size=VOCAB_SIZE)
    assert choice.build().vocab_size == VOCAB_SIZE
    assert choice.library == "SentencePiece"


def test_null_tokenizer() -> None:
    tokenizer = TokenizerChoice("NullTokenizer", vocab_size=100).build()
    assert (tokenizer.tokenize("1 2 3"), tokenizer.vocab_size, tokenizer.eod) == ([1, 2, 3], 100, 99)


def test_what_cannot_be_built(tokenizer_model: str, tmp_path: Path) -> None:
    (tmp_path / "broken.model").write_text("no model")
    for choice, words in (
        (TokenizerChoice("NoSuchTokenizer"), "cannot build the tokenizer --tokenizer-type NoSuchTokenizer"),
        (TokenizerChoice("NullTokenizer"), "vocab_size"),
        (TokenizerChoice("SentencePieceTokenizer"), "needs --tokenizer-model"),
        (
            TokenizerChoice("HuggingFaceTokenizer"),
            "--tokenizer-type HuggingFaceTokenizer needs --tokenizer-model FOLDER",
        ),
        (TokenizerChoice("SentencePieceTokenizer", "/nonexistent.model"), "/nonexistent.model: no such file"),
        (TokenizerChoice("GPT2BPETokenizer", vocab_file="/nonexistent.json"), "--vocab-file /nonexistent.json"),
        (TokenizerChoice("SentencePieceTokenizer", str(tmp_path / "broken.model")), "cannot build"),
        (TokenizerChoice("SentencePieceTokenizer", tokenizer_model, vocab_size=5), "--vocab-size 5, but"),
    ):
        with pytest.raises(CompeteError, match=words):
            choice.build()


def test_fingerprint_is_of_the_content(tokenizer_model: str, tmp_path: Path) -> None:
    copy, other = tmp_path / "renamed.model", tmp_path / "other.model"
    shutil.copy(tokenizer_model, copy)
    other.write_bytes(copy.read_bytes() + b"\0")
    prints = [TokenizerChoice("SentencePieceTokenizer", str(path)).fingerprint() for path in (tokenizer_model, copy)]
    assert prints[0] == prints[1] != TokenizerChoice("SentencePieceTokenizer", str(other)).fingerprint()
    assert TokenizerChoice("NullTokenizer", vocab_size=5).fingerprint() is None
    assert TokenizerChoice("HuggingFaceTokenizer", "some/hub-name").fingerprint() is None


def test_fingerprint_of_a_folder_follows_the_files_that_decide(tmp_path: Path) -> None:
    choice = TokenizerChoice("HuggingFaceTokenizer", str(tmp_path))
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (tmp_path / name).write_text(name)
    both = choice.fingerprint()
    (tmp_path / "merges.txt").write_text("other")
    assert choice.fingerprint() != both
    (tmp_path / "tokenizer.json").write_text("{}")
    decisive = choice.fingerprint()
    (tmp_path / "merges.txt").write_text("again other")
    (tmp_path / "tokenizer_config.json").write_text("other chat template")
    assert choice.fingerprint() == decisive
