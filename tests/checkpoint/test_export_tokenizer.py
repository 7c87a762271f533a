"""Which tokenizer an export gets: converted, copied or none."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from megatron_compete.checkpoint.export import Export, export_to_hf
from megatron_compete.checkpoint.export_tokenizer import Copied, export_tokenizer
from megatron_compete.checkpoint.reader import TorchDistCheckpoint
from megatron_compete.checkpoint.tokenizer import read_sentencepiece, write_tokenizer
from megatron_compete.errors import CompeteError
from tests.checkpoint.conftest import Saved


@pytest.fixture
def folder(train_model: Callable[..., Path], tmp_path: Path) -> Path:
    """A Hugging Face tokenizer of 230 ids."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    write_tokenizer(read_sentencepiece(train_model(vocab_size=230, byte_fallback=False)), folder, 64)
    (folder / "tokenization_evil.py").write_text("raise SystemExit")
    return folder


def test_a_hugging_face_tokenizer_is_copied(
    saved: Saved, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TorchDistCheckpoint.__init__

    def with_arguments(self: TorchDistCheckpoint, checkpoint: Path) -> None:
        original(self, checkpoint)
        trained = {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": str(folder), "vocab_size": 230}
        self.arguments.update(trained)

    monkeypatch.setattr(TorchDistCheckpoint, "__init__", with_arguments)
    exported = export_to_hf(Export(saved[0], tmp_path / "hf"))
    assert "the tokenizer's own files" in str(exported)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["vocab_size"], config["bos_token_id"], config["eos_token_id"]) == (230, 1, 2)
    ours, theirs = (AutoTokenizer.from_pretrained(str(path)) for path in (tmp_path / "hf", folder))
    text = "def f(x):\n    return x\n"
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert not list((tmp_path / "hf").glob("*.py"))


def test_a_folder_named_by_hand(folder: Path) -> None:
    found = export_tokenizer({"tokenizer_type": "NullTokenizer", "vocab_size": 230}, folder, False)
    assert isinstance(found, Copied) and found.source == folder
    assert found.ids == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}


def test_ids_that_an_import_kept(folder: Path) -> None:
    arguments = {
        "tokenizer_type": "NullTokenizer",
        "vocab_size": 230,
        "hf_eos_token_id": [2, 5],
        "hf_bos_token_id": None,
    }
    kept = {"bos_token_id": None, "eos_token_id": [2, 5], "pad_token_id": None}
    assert export_tokenizer(arguments, folder, False).ids == kept
    assert export_tokenizer(arguments, None, True).ids == kept


def test_a_tokenizer_that_has_moved(tmp_path: Path) -> None:
    arguments = {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": str(tmp_path / "gone")}
    with pytest.raises(CompeteError, match=r"gone, whose files are not there: .* --tokenizer-model, .* --no-tokenizer"):
        export_tokenizer(arguments, None, False)
