"""The fast tokenizer against SentencePiece: ids and decoded text, over the kinds of models that are converted."""

import json
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer

from megatron_compete.checkpoint.tokenizer import (
    SPACE,
    TOKENIZER_FILES,
    fast_tokenizer,
    read_sentencepiece,
    write_tokenizer,
)
from megatron_compete.checkpoint.tokenizer_proof import ODD_STRINGS, sampled_strings
from megatron_compete.common.errors import CompeteError

KINDS: dict[str, dict[str, Any]] = {
    "lossless": {},
    "dummy-prefix": {"add_dummy_prefix": True},
    "spaces-squeezed": {"add_dummy_prefix": True, "remove_extra_whitespaces": True},
    "spaces-squeezed-only": {"remove_extra_whitespaces": True},
    "no-bytes": {"byte_fallback": False, "add_dummy_prefix": True},
    "pieces-across-words": {"split_by_whitespace": False, "split_by_unicode_script": False, "split_by_number": False},
    "symbols": {
        "user_defined_symbols": ["<|im|>", "▁▁▁", "    ", "xa", "aab", "\n\n"],
        "control_symbols": ["<ctl>"],
        "pad_id": 3,
        "allow_whitespace_only_pieces": False,
    },
}


class Pair:
    """A model in both libraries."""

    def __init__(self, path: Path) -> None:
        self.model = read_sentencepiece(path)
        self.sentencepiece = SentencePieceProcessor(model_file=str(path))
        self.fast = fast_tokenizer(self.model)
        self.fast.encode_special_tokens = True

    def check(self, text: str) -> None:
        expected = self.sentencepiece.encode(text)
        assert self.fast.encode(text).ids == expected, text
        if self.model.unk_id not in expected and SPACE not in text:
            assert self.fast.decode(expected) == self.sentencepiece.decode(expected), text


@pytest.fixture(scope="module")
def pair_of(train_model: Callable[..., Path]) -> Callable[[str], Pair]:
    return cache(lambda kind: Pair(train_model(**KINDS[kind])))


@pytest.mark.parametrize("kind", KINDS)
def test_ids_on_odd_and_sampled_strings(pair_of: Callable[[str], Pair], kind: str) -> None:
    pair = pair_of(kind)
    for text in ODD_STRINGS:
        pair.check(text)
    for text in sampled_strings(pair.model, 1500):
        pair.check(text)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_on_source_code(pair_of: Callable[[str], Pair], kind: str) -> None:
    pair = pair_of(kind)
    for name in ("textwrap.py", "html/entities.py", "this.py"):
        source = Path(sysconfig.get_path("stdlib"), name).read_text(encoding="utf-8")
        pair.check(source)
        for start in range(0, len(source), 997):
            pair.check(source[start : start + 997])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    text=st.one_of(
        st.text(),
        st.text(alphabet=" \t\n▁=-xab<s>/|im"),
        st.lists(st.sampled_from(["    ", "\n\n", "aab", "xa", "<s>", "</s>", "==", "def", " ", "▁"])).map("".join),
    )
)
def test_ids_on_any_text(pair_of: Callable[[str], Pair], kind: str, text: str) -> None:
    pair_of(kind).check(text)


@pytest.fixture(scope="module")
def folder(train_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lossless tokenizer in a folder that says it holds a Mixtral."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(read_sentencepiece(train_model()), folder, max_length=128)
    (folder / "config.json").write_text(json.dumps({"model_type": "mixtral"}))
    return folder


def test_auto_tokenizer_gives_the_ids_of_training(folder: Path) -> None:
    processor = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    for text in ODD_STRINGS:
        assert tokenizer(text, verbose=False)["input_ids"] == processor.encode(text)
    texts = ["a <s> b", "c"]
    assert tokenizer(texts)["input_ids"] == [processor.encode(text) for text in texts]


def test_auto_tokenizer_knows_the_special_tokens(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    assert tokenizer.pad_token is None
    assert tokenizer.model_max_length == 128
    ids = [1, *tokenizer("x = 1")["input_ids"], 2]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "x = 1"
    assert tokenizer.decode(ids) == "<s>x = 1</s>"


def test_saving_it_again_changes_nothing(folder: Path, tmp_path: Path) -> None:
    AutoTokenizer.from_pretrained(str(folder)).save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(str(tmp_path))
    processor = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert again("<s> a  b</s>")["input_ids"] == processor.encode("<s> a  b</s>")


def test_files(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {*TOKENIZER_FILES, "config.json"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model_type": "unigram"}, "has unigram"),
        ({"normalization_rule_name": "nmt_nfkc"}, "a normalisation, nmt_nfkc"),
        ({"treat_whitespace_as_suffix": True}, "spaces at the end of words"),
        ({"user_defined_symbols": ["<x>"], "add_dummy_prefix": True}, "user-defined symbols beside add_dummy_prefix"),
        ({"control_symbols": ["§"]}, "a control symbol of one character"),
    ],
)
def test_models_without_an_equal_are_refused(
    train_model: Callable[..., Path], options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(CompeteError, match=reason):
        read_sentencepiece(train_model(**options))


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CompeteError, match=r"cannot be read .* name it with --tokenizer-model"):
        read_sentencepiece(tmp_path / "none.model")
    (tmp_path / "text.model").write_text("not a model at all")
    with pytest.raises(CompeteError, match="is not a SentencePiece model"):
        read_sentencepiece(tmp_path / "text.model")
    (tmp_path / "empty.model").write_bytes(b"")
    with pytest.raises(CompeteError, match="is not a SentencePiece model"):
        read_sentencepiece(tmp_path / "empty.model")
