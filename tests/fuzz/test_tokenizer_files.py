"""Damaged tokenizer files: refused, or a tokenizer whose ids are in its vocabulary, or whose texts are faults."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

from megatron_compete.data.bad_documents import BadDocument
from megatron_compete.data.engines import REFERENCE, EngineChoice, make_encoder
from megatron_compete.data.megatron_tokenizer import TokenizerChoice, id_count
from megatron_compete.data.preprocessing.encode import DocumentEncoder
from tests.data.tokenizer_kinds import EOS, train_byte_level
from tests.fuzz.damage import fuzz

TEXTS = ["def f(x):\n    return x\n", "naïve 🙂", "", "<s></s> <|endoftext|>", "\x00\u2028"]


def read(choice: TokenizerChoice) -> None:
    tokenizer = choice.build()
    size = id_count(tokenizer)
    engine = make_encoder(choice, tokenizer, EngineChoice(REFERENCE, REFERENCE))
    encoder = DocumentEncoder(engine, ("text",), size, None, np.int32)
    batch = encoder.encode([{"text": text} for text in TEXTS])
    ids = batch.keys["text"].ids
    assert not ids.size or (ids.min() >= 0 and ids.max() < size)
    assert len(batch.keys["text"].sentences) + len(batch.faults) == len(TEXTS)
    assert all(isinstance(bad, BadDocument) and bad.reason for _, bad in batch.faults)


@pytest.mark.slow
def test_sentencepiece(tmp_path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 3), model_writer=model, vocab_size=290, model_type="bpe", byte_fallback=True, minloglevel=2
    )  # fmt: skip
    path = tmp_path / "t.model"

    def read_model(data: bytes) -> None:
        path.write_bytes(data)
        read(TokenizerChoice("SentencePieceTokenizer", str(path)))

    assert fuzz("sentencepiece", [model.getvalue()], read_model, inputs=120, seconds=15) > 60


@pytest.mark.slow
def test_hugging_face(tmp_path: Path) -> None:
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    good = train_byte_level(TEXTS, 300).to_str().encode()

    def read_folder(data: bytes) -> None:
        (tmp_path / "tokenizer.json").write_bytes(data)
        read(TokenizerChoice("HuggingFaceTokenizer", str(tmp_path)))

    assert fuzz("tokenizer-json", [good], read_folder, inputs=80, seconds=15) > 30
