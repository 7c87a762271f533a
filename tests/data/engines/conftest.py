"""Texts and tokenizers that the engines' tests share."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_compete.data.megatron_tokenizer import TokenizerChoice
from megatron_compete.data.stdlib_corpus import StdlibCorpus
from tests.data.tokenizer_kinds import hugging_face_folder, tiktoken_file, train_byte_level, with_bos


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
