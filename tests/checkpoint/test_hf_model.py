from pathlib import Path

import pytest
import torch

from megatron_compete.checkpoint.custom_code import auto_map, write_code
from megatron_compete.checkpoint.families import FAMILIES
from megatron_compete.checkpoint.hf_model import load_hf_model, load_hf_tokenizer, model_from_config
from megatron_compete.common.errors import CompeteError
from tests.checkpoint import hf_models
from tests.checkpoint.custom_code.models import SIZES


def own(folder: Path) -> Path:
    """An export of the own family."""
    from megatron_compete.checkpoint.custom_code.configuration_competesmoe import CompeteSMoEConfig
    from megatron_compete.checkpoint.custom_code.modeling_competesmoe import CompeteSMoEForCausalLM

    family = FAMILIES["competesmoe"]
    CompeteSMoEForCausalLM(CompeteSMoEConfig(**SIZES, auto_map=auto_map(family))).save_pretrained(folder)
    write_code(family, folder)
    return folder


def test_dtype_is_the_folders_or_the_wanted_one(tmp_path: Path) -> None:
    folder = hf_models.save(tmp_path, "mixtral", torch.bfloat16)
    for dtype, wanted in (("auto", torch.bfloat16), ("float32", torch.float32)):
        model = load_hf_model(folder, "--hf", dtype)
        assert not model.training and {one.dtype for one in model.parameters()} == {wanted}


def test_own_code_needs_no_word_and_other_code_does(tmp_path: Path) -> None:
    folder = own(tmp_path)
    assert type(load_hf_model(folder, "--hf")).__name__ == "CompeteSMoEForCausalLM"
    code = folder / "modeling_competesmoe.py"
    code.write_text(code.read_text() + "\n")
    with pytest.raises(CompeteError, match=r"(?s)--hf .* transformers cannot load it: .*trust_remote_code"):
        load_hf_model(folder, "--hf")


def test_a_model_without_weights_lies_on_the_meta_device(tmp_path: Path) -> None:
    folder = hf_models.save(tmp_path, "mixtral")
    (folder / "model.safetensors").unlink()
    assert {one.device.type for one in model_from_config(folder, "--hf").parameters()} == {"meta"}
    with pytest.raises(CompeteError, match=rf"--hf {folder}: transformers cannot load it"):
        load_hf_model(folder, "--hf")
    with pytest.raises(CompeteError, match=rf"--hf {folder}: transformers cannot load it"):
        load_hf_tokenizer(folder, "--hf")
