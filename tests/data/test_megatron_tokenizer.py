"""The tokenizer that Megatron's flags name."""

import inspect
import re
import shutil
from dataclasses import fields
from pathlib import Path

import pytest

from megatron_compete.data.megatron_tokenizer import _OTHER_DEFAULTS, SENTENCEPIECE_TYPES, TokenizerChoice
from megatron_compete.errors import CompeteError
from tests.data.conftest import VOCAB_SIZE


def test_namespace_has_every_argument_that_megatron_reads() -> None:
    from megatron.core.tokenizers.utils import build_tokenizer as module

    read = set(re.findall(r"\bargs\.(\w+)", inspect.getsource(module.build_tokenizer)))
    assert read <= vars(TokenizerChoice("x").arguments()).keys()
    assert set(module.SP_TOKENIZERS) == SENTENCEPIECE_TYPES


def test_defaults_are_the_trainers() -> None:
    from megatron.training.config.training_config import TokenizerConfig

    trainers = {field.name: field.default for field in fields(TokenizerConfig)}
    ours = {name: value for name, value in _OTHER_DEFAULTS.items() if name in trainers and name != "pad_vocab_size"}
    assert len(ours) > 8
    assert ours == {name: trainers[name] for name in ours}


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
