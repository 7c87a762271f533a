"""Which tokenizer an export gets: converted, copied or none."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_compete.checkpoint.export import Export, export_to_hf
from megatron_compete.checkpoint.export_tokenizer import Copied, export_tokenizer
from megatron_compete.checkpoint.families import FAMILIES
from megatron_compete.checkpoint.import_hf import Import, import_checkpoint
from megatron_compete.checkpoint.model_card import model_card
from megatron_compete.checkpoint.reader import TorchDistCheckpoint
from megatron_compete.checkpoint.tokenizer import read_sentencepiece, write_tokenizer
from megatron_compete.common.errors import CompeteError
from tests.checkpoint import hf_models
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


def test_what_llama_cpp_cannot_read_is_said(train_model: Callable[..., Path]) -> None:
    def caution(family: str, **options: bool) -> str | None:
        arguments = {"tokenizer_type": "SentencePieceTokenizer", "tokenizer_model": str(train_model(**options))}
        return export_tokenizer(arguments, None, False).caution(family)

    assert caution("mixtral") is None
    assert "--override-kv tokenizer.ggml.add_space_prefix=bool:false" in str(caution("qwen3_moe"))
    assert caution("qwen3_moe", add_dummy_prefix=True) is None
    assert "runs of spaces" in str(caution("mixtral", remove_extra_whitespaces=True))
    card = model_card(FAMILIES["qwen3_moe"], {}, 7, True, caution("qwen3_moe"))
    assert "converter puts a space before every prompt" in card


def test_names_in_special_tokens_map_alone(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    kept = {name: value for name, value in config.items() if name not in ("bos_token", "eos_token", "unk_token")}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept))
    found = export_tokenizer({"tokenizer_type": "NullTokenizer", "vocab_size": 230}, folder, False)
    assert found.ids == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}


def test_a_tokenizer_that_cannot_be_loaded(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CompeteError, match=r"tokenizer cannot be loaded \(.*--tokenizer-model, .* --no-tokenizer"):
        export_tokenizer({"tokenizer_type": "NullTokenizer", "vocab_size": 230}, folder, False)


SETTINGS = {"eos_token_id": [7, 2], "pad_token_id": 2, "do_sample": True, "temperature": 0.6, "top_p": 0.95}


@pytest.fixture
def source(folder: Path, tmp_path: Path) -> Path:
    """A model with a tokenizer, settings of its own for generation, and chat templates."""
    source = hf_models.save(tmp_path / "source", "llama", eos_token_id=2, bos_token_id=1)
    shutil.copytree(folder, source, dirs_exist_ok=True)
    (source / "generation_config.json").write_text(json.dumps(SETTINGS))
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    return source


@pytest.mark.parametrize("trained", [False, True])
def test_generation_settings_travel_with_the_run(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: bool
) -> None:
    import_checkpoint(Import(source, tmp_path / "megatron"))
    if trained:  # what a trainer saves has Megatron's arguments alone
        forget_import(monkeypatch)
    output = export_to_hf(Export(tmp_path / "megatron", tmp_path / "hf")).output
    assert json.loads((output / "generation_config.json").read_text()) == SETTINGS
    config = json.loads((output / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, [7, 2], 2)
    assert AutoModelForCausalLM.from_pretrained(output).generation_config.eos_token_id == [7, 2]
    assert (output / "chat_template.jinja").read_text() == "{{ messages }}"
    assert (output / "additional_chat_templates" / "tools.jinja").read_text() == "{{ tools }}"
    weights_alone = export_to_hf(Export(tmp_path / "megatron", tmp_path / "bare", no_tokenizer=True)).output
    assert json.loads((weights_alone / "generation_config.json").read_text()) == SETTINGS


def test_ids_of_a_model_without_generation_settings(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "generation_config.json").unlink()
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"eos_token_id": [7, 2], "pad_token_id": 5}))
    import_checkpoint(Import(source, tmp_path / "megatron"))
    forget_import(monkeypatch)
    output = export_to_hf(Export(tmp_path / "megatron", tmp_path / "hf")).output
    ids = {"bos_token_id": 1, "eos_token_id": [7, 2], "pad_token_id": 5}
    assert json.loads((output / "generation_config.json").read_text()) == ids
    assert json.loads((output / "config.json").read_text()).items() >= ids.items()


def test_generation_settings_that_cannot_be_read(source: Path, tmp_path: Path) -> None:
    for content in ("[1]", "{"):
        (source / "generation_config.json").write_text(content)
        with pytest.raises(CompeteError, match=r"generation_config\.json (is not|cannot be read)"):
            import_checkpoint(Import(source, tmp_path / "megatron"))


def forget_import(monkeypatch: pytest.MonkeyPatch) -> None:
    original = TorchDistCheckpoint.__init__

    def without_ids(self: TorchDistCheckpoint, checkpoint: Path) -> None:
        original(self, checkpoint)
        for name in [name for name in self.arguments if name.startswith("hf_")]:
            del self.arguments[name]

    monkeypatch.setattr(TorchDistCheckpoint, "__init__", without_ids)


def test_a_tokenizer_that_has_moved(tmp_path: Path) -> None:
    arguments = {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": str(tmp_path / "gone")}
    with pytest.raises(CompeteError, match=r"gone, whose files are not there: .* --tokenizer-model, .* --no-tokenizer"):
        export_tokenizer(arguments, None, False)
