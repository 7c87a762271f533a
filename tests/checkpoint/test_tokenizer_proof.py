"""The proof of a tokenizer: it passes on equal ones and names what differs on others."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_compete.checkpoint.tokenizer import read_sentencepiece, write_tokenizer
from megatron_compete.checkpoint.tokenizer_proof import ODD_STRINGS, prove, read_texts, sampled_strings
from megatron_compete.common.errors import CompeteError


@pytest.fixture
def exported(train_model: Callable[..., Path], tmp_path: Path) -> Path:
    write_tokenizer(read_sentencepiece(train_model()), tmp_path, max_length=64)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mixtral"}))
    return tmp_path


def test_equal_tokenizers_pass(exported: Path, train_model: Callable[..., Path], tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "one"}\n\n{"text": "two <s>"}\n')
    count = prove(exported, read_sentencepiece(train_model()), text, samples=50)
    assert count == len(ODD_STRINGS) + 50 + 2


def test_a_lost_merge_is_found(exported: Path, train_model: Callable[..., Path]) -> None:
    path = exported / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["merges"].remove(["=", "="])
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(CompeteError, match=r"differs from .* Nothing was written"):
        prove(exported, read_sentencepiece(train_model()), samples=500)


def test_special_tokens_found_in_the_text_are_found(exported: Path, train_model: Callable[..., Path]) -> None:
    path = exported / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"split_special_tokens": False}))
    with pytest.raises(CompeteError, match="'<s>'"):
        prove(exported, read_sentencepiece(train_model()), samples=0)


def test_a_wrong_decoder_is_found(exported: Path, train_model: Callable[..., Path]) -> None:
    path = exported / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["decoder"] = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(CompeteError, match="decodes the ids"):
        prove(exported, read_sentencepiece(train_model()), samples=0)


def test_samples_are_the_same_at_every_run(train_model: Callable[..., Path]) -> None:
    model = read_sentencepiece(train_model())
    samples = list(sampled_strings(model, 200))
    assert samples == list(sampled_strings(model, 200))
    assert len(set(samples)) > 190


def test_texts_of_plain_files(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one\ntwo")
    assert list(read_texts(path)) == ["one\n", "two", "one\ntwo"]


def test_texts_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CompeteError, match=r"--verify-text .* cannot be read"):
        list(read_texts(tmp_path / "none.txt"))
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "fine"}\n{"content": "not so"}\n')
    with pytest.raises(CompeteError, match='line 2 is not a JSON object with a "text"'):
        list(read_texts(path))


def test_lone_surrogates_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "a\\ud800b"}\n')
    assert list(read_texts(path)) == ["a?b"]
