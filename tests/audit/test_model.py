from pathlib import Path

import pytest
import torch

from megatron_compete.audit.model import Source, choose_device, hugging_face_folder, open_model, open_tokenizer
from megatron_compete.audit.parts import Ranks
from megatron_compete.checkpoint.import_hf import Import, import_checkpoint
from megatron_compete.common.errors import CompeteError
from tests.audit.models import text
from tests.checkpoint import gpt, hf_models
from tests.checkpoint.vlm import llava_models
from tests.ranks import run_rank


def test_a_folder_is_loaded_as_it_is(tmp_path: Path) -> None:
    source = Source(hf_models.save(tmp_path / "hf", "qwen3_moe", torch.bfloat16), device="cpu")
    assert hugging_face_folder(source, tmp_path / "none", Ranks()) == source.checkpoint
    model = open_model(source, source.checkpoint)
    assert next(model.module.parameters()).dtype == torch.bfloat16
    assert not model.module.training and not any(one.requires_grad for one in model.module.parameters())
    wide = open_model(Source(source.checkpoint, device="cpu", dtype="float32"), source.checkpoint)
    ids_SL = text().ids_SL
    with torch.no_grad():
        logits = wide.module(ids_SL[:, :-1]).logits
        wanted = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids_SL[:, 1:], reduction="none").sum(1)
        torch.testing.assert_close(wide.losses(ids_SL).float(), wanted)


def test_dense_models_are_refused_before_their_weights_are_read(tmp_path: Path) -> None:
    folder = hf_models.save(tmp_path / "hf", "llama")
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        CompeteError, match=r"LlamaForCausalLM has no mixture-of-experts layers: there is nothing to audit"
    ):
        open_model(Source(folder), folder)
    run_rank(gpt.save_all, str(tmp_path / "megatron"), {"llama": gpt.FAMILIES["llama"]})
    with pytest.raises(CompeteError, match=r"llama is a dense model: it has no experts, so there is nothing to audit"):
        hugging_face_folder(Source(tmp_path / "megatron" / "llama"), tmp_path / "out", Ranks())
    assert not (tmp_path / "out").exists()


def test_vision_language_models_are_named(tmp_path: Path) -> None:
    source = llava_models.save(tmp_path / "hf", "siglip", "mixtral")
    import_checkpoint(Import(source, tmp_path / "megatron"))
    for folder in (source, tmp_path / "megatron"):
        with pytest.raises(CompeteError, match=f"{folder} is a vision-language model, and audits read text alone"):
            hugging_face_folder(Source(folder), tmp_path / "out", Ranks())


def test_an_export_is_made_once_for_each_checkpoint(tmp_path: Path) -> None:
    run_rank(gpt.save_all, str(tmp_path), {"mixtral": gpt.FAMILIES["mixtral"], "qwen3_moe": gpt.FAMILIES["qwen3_moe"]})
    first, other = (
        hugging_face_folder(Source(tmp_path / name), tmp_path / "out", Ranks()) for name in ("mixtral", "qwen3_moe")
    )
    assert first != other and {first.parent, other.parent} == {tmp_path / "out"}
    written = (first / "config.json").stat().st_mtime_ns
    assert hugging_face_folder(Source(tmp_path / "mixtral"), tmp_path / "out", Ranks()) == first
    assert (first / "config.json").stat().st_mtime_ns == written


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    folder = hf_models.save(tmp_path / "hf", "qwen3_moe")
    model = open_model(Source(folder, device="cpu"), folder)
    model.module.lm_head.weight[0, 0] = torch.nan
    with pytest.raises(CompeteError, match=rf"losses of {folder}: \d+ of 6 values are infinite or not numbers"):
        model.losses(text().ids_SL)


def test_each_rank_of_a_node_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device("cuda") == torch.device("cuda", 3) and choose_device("cpu") == torch.device("cpu")
    for available in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert choose_device("auto") == (torch.device("cuda", 3) if available else torch.device("cpu"))


def test_tokenizer_of_a_folder(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    assert open_tokenizer(Source(tmp_path), tmp_path) == (None, None)
    words = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1, "b": 2, "<unk>": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", bos_token="<eos>").save_pretrained(tmp_path)
    encode, end = open_tokenizer(Source(tmp_path), tmp_path)
    assert encode is not None and encode("a b c") == [1, 2, 3] and end == 0


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CompeteError, match=rf"checkpoint {tmp_path}: transformers cannot load it"):
        open_model(Source(tmp_path), tmp_path)
    with pytest.raises(CompeteError, match=r"no such folder"):
        hugging_face_folder(Source(tmp_path / "none"), tmp_path / "out", Ranks())
