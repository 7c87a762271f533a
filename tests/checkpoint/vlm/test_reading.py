"""LLaVAs and their parts as checkpoints of Megatron's: every layout, what is put together, and what is refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, LlavaForConditionalGeneration, SiglipConfig, SiglipModel

from megatron_compete.checkpoint.import_hf import Import, import_checkpoint
from megatron_compete.checkpoint.location import find_checkpoint
from megatron_compete.checkpoint.reader import TorchDistCheckpoint
from megatron_compete.checkpoint.vlm.folders import UNUSED
from megatron_compete.checkpoint.vlm.processor import IMAGE_PROCESSOR, OLD_TEMPLATE
from megatron_compete.checkpoint.vlm.reading import IMAGE_TOKEN
from megatron_compete.cli.convert import main
from megatron_compete.common.errors import CompeteError
from tests.checkpoint import hf_models
from tests.checkpoint.vlm import llava_models
from tests.checkpoint.vlm.llava_models import change_config


def opened(folder: Path) -> TorchDistCheckpoint:
    return TorchDistCheckpoint(find_checkpoint(folder))


def assert_same_tensors(one: TorchDistCheckpoint, other: TorchDistCheckpoint, prefix: str = "") -> None:
    keys = {key for key in one.tensors if key.startswith(prefix)}
    assert keys == {key for key in other.tensors if key.startswith(prefix)} and keys
    for key in keys:
        assert one.read(key).equal(other.read(key)), key


def rename(folder: Path, change: Callable[[str], str | None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for old, tensor in tensors.items() if (name := change(old))}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def test_every_layout_is_the_same_model(tmp_path: Path) -> None:
    """The hub's, transformers 5's as it saves, and that of its modules, experts of the decoder fused in it."""
    source = llava_models.save(tmp_path / "source", "siglip", "mixtral")
    model = LlavaForConditionalGeneration.from_pretrained(source)
    model.save_pretrained(tmp_path / "modules", save_original_format=False)
    names = load_file(tmp_path / "modules" / "model.safetensors").keys()
    assert "model.language_model.layers.0.mlp.experts.gate_up_proj" in names
    llava_models.save_tokenizer(tmp_path / "modules")
    shutil.copytree(source, tmp_path / "hub")
    rename(tmp_path / "hub", lambda name: name.replace("vision_tower.", "vision_tower.vision_model."))
    for name in ("source", "modules", "hub"):
        import_checkpoint(Import(tmp_path / name, tmp_path / f"from-{name}"))
    for name in ("modules", "hub"):
        assert_same_tensors(opened(tmp_path / "from-source"), opened(tmp_path / f"from-{name}"))


@pytest.mark.parametrize(("layer", "layers"), [(-2, 2), (-1, 3), (1, 1)])
def test_the_tower_ends_where_llava_takes_its_states(layer: int, layers: int, tmp_path: Path) -> None:
    source = llava_models.save(tmp_path / "source", vision_feature_layer=layer)
    said = str(import_checkpoint(Import(source, tmp_path / "megatron")))
    found = opened(tmp_path / "megatron")
    assert found.arguments["vision_num_layers"] == layers
    assert found.tensors["vision_model.decoder.layers.mlp.linear_fc1.bias"].shape == (layers, 40)
    unused = [
        name for name in load_file(source / "model.safetensors") if any(one.partition(".")[2] in name for one in UNUSED)
    ]
    assert unused and "tensors of the tower behind the states that the projector takes" in said


def test_the_recipe_and_the_files_beside_the_weights(tmp_path: Path) -> None:
    from megatron_compete.launch.recipe import read_recipe

    source = llava_models.save(tmp_path / "source", "clip")
    (source / "chat_template.jinja").unlink()
    (source / OLD_TEMPLATE).write_text(json.dumps({"chat_template": "{{ messages }}"}))
    import_checkpoint(Import(source, tmp_path / "megatron"))
    beside = tmp_path / "megatron" / "tokenizer"
    wanted = {
        "vision-model-type": "clip", "vision-num-layers": 2, "vision-hidden-size": 24, "vision-ffn-hidden-size": 40,
        "vision-num-attention-heads": 3, "vision-layernorm-epsilon": 1e-5, "disable-vision-class-token": True,
        "projector-ffn-hidden-size": 32, "img-h": 18, "img-w": 18, "patch-dim": 4, "image-token": IMAGE_TOKEN,
        "image-processor": str(beside), "tokenizer-model": str(beside), "padded-vocab-size": 256,
    }  # fmt: skip
    arguments = read_recipe(tmp_path / "megatron" / "recipe.yaml").arguments
    assert {name: arguments.get(name) for name in wanted} == wanted
    assert "num-experts" not in arguments and "experts-in" not in arguments
    assert (beside / "chat_template.jinja").read_text() == "{{ messages }}"
    assert json.loads((beside / IMAGE_PROCESSOR).read_text())["crop_size"] == {"height": 18, "width": 18}


def test_the_command_upcycles_the_parts_that_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from megatron_compete.launch.recipe import read_recipe

    source = llava_models.save(tmp_path / "source")
    flags = ["--to", "megatron", "--checkpoint", str(source), "--output", str(tmp_path / "megatron")]
    main([*flags, "--upcycle-experts", "4", "--experts-in", "projector", "language"])
    said = capsys.readouterr().out
    assert "the dense model's function is kept" in said
    assert f"pretrain --recipe {tmp_path}/megatron/recipe.yaml --data-path DATA.json --image-folder IMAGES" in said
    recipe = read_recipe(tmp_path / "megatron" / "recipe.yaml")
    assert recipe.arguments["experts-in"] == ["projector", "language"]
    words = recipe.command()
    assert words[words.index("--experts-in") :][:3] == ["--experts-in", "projector", "language"]
    keys = opened(tmp_path / "megatron").tensors
    assert "vision_model.decoder.layers.mlp.linear_fc1.weight" in keys
    assert keys["vision_projection.encoder.experts.experts.linear_fc2.bias"].shape == (4, 32)
    assert keys["language_model.decoder.layers.mlp.experts.experts.linear_fc1.weight"].shape == (2, 4, 96, 32)


def whole(folder: Path, kind: str) -> Path:
    """A tower beside a text encoder."""
    text = {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "vocab_size": 50,
    }
    text |= {"bos_token_id": 1, "eos_token_id": 2}
    config, model = {"siglip": (SiglipConfig, SiglipModel), "clip": (CLIPConfig, CLIPModel)}[kind]
    made = model(config(vision_config=llava_models.TOWER, text_config=text))
    llava_models.randomize(made)
    made.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_a_tower_before_a_language_model(kind: str, tmp_path: Path) -> None:
    """Alone or beside a text encoder it is the same tower; the language model is as without it."""
    words = hf_models.save(tmp_path / "words", "qwen2")
    llava_models.save_tokenizer(words, image=False)
    both = whole(tmp_path / "both", kind)
    alone = {"siglip": SiglipModel, "clip": CLIPModel}[kind].from_pretrained(both).vision_model
    alone.save_pretrained(tmp_path / "alone")
    flags = ["--to", "megatron", "--checkpoint", str(words)]
    for name in ("both", "alone"):
        main([*flags, "--vision-tower", str(tmp_path / name), "--output", str(tmp_path / f"with-{name}")])
    main([*flags, "--output", str(tmp_path / "without")])
    one, other, language = (opened(tmp_path / name) for name in ("with-both", "with-alone", "without"))
    assert_same_tensors(one, other)
    assert one.arguments["disable_vision_class_token"] is (kind == "clip")
    for key, info in language.tensors.items():
        found = one.read(f"language_model.{key}")
        assert found[: info.shape[0]].equal(language.read(key)), key


def test_a_new_image_token_is_never_the_likeliest(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    words = hf_models.save(tmp_path / "words", "llama")
    llava_models.save_tokenizer(words, image=False)
    tower = llava_models.save_tower(tmp_path / "tower", "siglip")
    imported = import_checkpoint(Import(words, tmp_path / "megatron", vision_tower=tower, image_token="<picture>"))
    assert f"the tokenizer has a new token <picture>, id {hf_models.VOCAB}" in imported.notes
    found = opened(tmp_path / "megatron")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "megatron" / "tokenizer")
    assert tokenizer("w5 <picture>w6")["input_ids"] == [5, hf_models.VOCAB, 6]
    assert found.arguments["vocab_size"] == hf_models.VOCAB + 1 and found.arguments["image_token"] == "<picture>"
    head = found.read("language_model.output_layer.weight")
    logits = torch.randn(1000, head.shape[1]) @ head.T
    assert (logits.argmax(-1) != hf_models.VOCAB).all()


def test_a_token_that_the_tokenizer_has_is_taken(tmp_path: Path) -> None:
    words = hf_models.save(tmp_path / "words", "llama")
    llava_models.save_tokenizer(words)
    tower = llava_models.save_tower(tmp_path / "tower", "siglip")
    import_checkpoint(Import(words, tmp_path / "megatron", vision_tower=tower))
    found = opened(tmp_path / "megatron").arguments
    assert (found["hf_image_token_id"], found["vocab_size"]) == (llava_models.IMAGE, hf_models.VOCAB)


@pytest.mark.parametrize("names", ["transformers", "LLaVA"])
def test_a_given_projector(names: str, tmp_path: Path) -> None:
    llava = llava_models.save(tmp_path / "llava")
    tensors = load_file(llava / "model.safetensors")
    projector = {name.rpartition("projector.")[2]: one for name, one in tensors.items() if "projector" in name}
    if names == "LLaVA":
        numbers = {"linear_1": "0", "linear_2": "2"}
        projector = {f"model.mm_projector.{numbers[name[:8]]}{name[8:]}": one for name, one in projector.items()}
    save_file(projector, tmp_path / "projector.safetensors")
    words, tower = hf_models.save(tmp_path / "words", "llama"), llava_models.save_tower(tmp_path / "tower", "siglip")
    for path in (tmp_path / "projector.safetensors", llava):
        output = tmp_path / f"with-{path.stem}"
        import_checkpoint(Import(words, output, vision_tower=tower, projector=path))
        found = opened(output).read("vision_projection.encoder.linear_fc2.weight")
        assert found.equal(tensors["multi_modal_projector.linear_2.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_feature_layer": [-2, -1]}, r"vision_feature_layer \[-2, -1\] takes the states of several layers"),
        ({"vision_feature_layer": -4}, "vision_feature_layer -4 is none of the tower's 3 layers"),
        ({"vision_feature_select_strategy": "default"}, "drops a SigLIP tower's first patch .*: set it to full"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act relu: Megatron's projector here has gelu alone"),
        ({"multimodal_projector_bias": False}, "multimodal_projector_bias false: .* add biases of zeros"),
        ({"image_token_index": 300}, "image_token_index 300, an id that its tokenizer does not have"),
        (
            {"model_type": "llava_next"},
            r"model_type llava_next: it cuts pictures into tiles by their size \(anyres\); LLaVA's",
        ),
        ({"model_type": "qwen2_5_vl"}, "model_type qwen2_5_vl: it has M-RoPE"),
        ({"model_type": "internvl"}, "model_type internvl: it shuffles pixels"),
    ],
    ids=lambda one: str(next(iter(one.items()))) if isinstance(one, dict) else None,
)
def test_what_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    refused(change_config(llava_models.save(tmp_path / "source"), **change), message)


LONG_ROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4,
    "factor": 4.0,
    "rope_theta": 1e4,
}


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("text_config", {"rope_parameters": LONG_ROPE}, "text_config of config.json has rope_parameters .*longrope.*without the scaling"),
        ("text_config", {"model_type": "phi3"}, "text_config of config.json has model_type phi3: .*LongRoPE"),
        ("text_config", {"model_type": "nemotron_h"}, "the language model has model_type nemotron_h, a hybrid"),
        ("text_config", {"attention_bias": True}, "text_config of config.json has attention_bias True"),
        ("vision_config", {"hidden_act": "gelu"}, "vision_config of config.json has hidden_act gelu"),
        ("vision_config", {"model_type": "dinov2"}, "model_type dinov2: supported are siglip_vision_model, clip_vision_model"),
        ("vision_config", {"intermediate_size": 48}, r"vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight has shape \(40, 24\)"),
    ],
    ids=lambda one: str(next(iter(one))) if isinstance(one, dict) else None,
)  # fmt: skip
def test_what_is_refused_of_a_part(section: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    refused(change_config(llava_models.save(tmp_path / "source"), section, **change), message)


def refused(source: Path, message: str, *flags: str) -> None:
    """By the command, in one line, with nothing left behind."""
    with pytest.raises(CompeteError, match=message) as caught:
        main(["--to", "megatron", "--checkpoint", str(source), "--output", str(source.parent / "megatron"), *flags])
    assert "\n" not in str(caught.value)
    assert not (source.parent / "megatron").exists()


def test_tensors_that_no_llava_has(tmp_path: Path) -> None:
    source = llava_models.save(tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    save_file(tensors | {"image_newline": torch.ones(32)}, source / "model.safetensors", metadata={"format": "pt"})
    refused(source, "has 1 tensors that no LLaVA has: image_newline")
    twice = {"vision_tower.vision_model.embeddings.patch_embedding.bias": torch.ones(24)}
    save_file(tensors | twice, source / "model.safetensors", metadata={"format": "pt"})
    refused(
        source,
        "vision_tower.embeddings.patch_embedding.bias and vision_tower.vision_model.*: which counts cannot be known",
    )
    tensors.pop("vision_tower.encoder.layers.1.mlp.fc2.bias")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    refused(source, "has no vision_tower.vision_model.encoder.layers.1.mlp.fc2.bias, which config.json asks for")


def test_an_image_processor_of_another_size(tmp_path: Path) -> None:
    source = llava_models.save(tmp_path / "source")
    (source / IMAGE_PROCESSOR).write_text(
        json.dumps({"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}})
    )
    refused(source, "makes pictures of 3 x 32 x 32, and its tower takes 3 x 18 x 18: set its size")


def test_flags_that_have_no_effect(tmp_path: Path) -> None:
    words = hf_models.save(tmp_path / "words", "llama")
    refused(
        words,
        "--image-token is of a model that is put together: it goes with --vision-tower",
        "--image-token",
        "<image>",
    )
    refused(
        words, "--experts-in vision is of vision-language models", "--upcycle-experts", "4", "--experts-in", "vision"
    )
    refused(words, "--experts-in says how to upcycle: it goes with --upcycle-experts", "--experts-in", "vision")
    hybrid = hf_models.save(tmp_path / "hybrid", "nemotron_h")
    refused(hybrid, "model_type nemotron_h, a hybrid", "--vision-tower", str(words))
    refused(words, f"--vision-tower {tmp_path}/none: no such folder", "--vision-tower", str(tmp_path / "none"))
    refused(words, r"supported are siglip_vision_model", "--vision-tower", str(words))
    llava, tower = llava_models.save(tmp_path / "llava"), llava_models.save_tower(tmp_path / "tower", "siglip")
    refused(llava, "has a tower already: leave --vision-tower out", "--vision-tower", str(tower))
    flags = ["--vision-tower", str(tower), "--projector"]
    (tmp_path / "mm_projector.bin").touch()
    refused(words, "a .bin is a pickle, which can run code", *flags, str(tmp_path / "mm_projector.bin"))
    save_file({"mm_projector.weight": torch.ones(32, 24)}, tmp_path / "linear.safetensors")
    refused(
        words,
        "has mm_projector.weight: a projector is linear_1 and linear_2",
        *flags,
        str(tmp_path / "linear.safetensors"),
    )
    text = str(words / "config.json")
    refused(words, "--verify compares with a Hugging Face folder, .* leave it out", *flags[:2], "--verify", text)
