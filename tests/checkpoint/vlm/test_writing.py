"""Vision-language models there and back: the same bits, the same answers, and what transformers' classes cannot express."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from megatron_compete.checkpoint.export import Export, export_to_hf
from megatron_compete.checkpoint.import_hf import Import, import_checkpoint
from megatron_compete.checkpoint.location import find_checkpoint
from megatron_compete.checkpoint.options import Upcycling
from megatron_compete.checkpoint.reader import TorchDistCheckpoint
from megatron_compete.checkpoint.vlm.writing import POST_NORM
from megatron_compete.common.errors import CompeteError
from megatron_compete.data.conversations.config import ConversationConfig
from megatron_compete.data.conversations.pixels import Pixels
from tests.checkpoint import hf_models
from tests.checkpoint.vlm import llava_models
from tests.checkpoint.vlm.llava_models import PATCHES

UNUSED = ("vision_tower.encoder.layers.2.", "vision_tower.post_layernorm.", "vision_tower.head.")
"""Behind the states that LLaVA takes of a tower of three layers."""


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """By the names of transformers 5, which leaves `vision_model.` out."""
    found = {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
    return {
        name.replace(f"vision_tower.{POST_NORM.partition('.')[0]}.", "vision_tower."): one
        for name, one in found.items()
    }


@pytest.mark.parametrize(
    ("kind", "family", "dtype"),
    [
        ("siglip", "llama", torch.bfloat16),
        ("clip", "qwen2", torch.float32),
        ("siglip", "mixtral", torch.float32),
        ("clip", "qwen3_moe", torch.float32),
    ],
    ids=lambda one: str(one).removeprefix("torch."),
)
def test_there_and_back_is_bit_for_bit_the_same(kind: str, family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    source = llava_models.save(tmp_path / "source", kind, family, dtype=dtype)
    import_checkpoint(Import(source, tmp_path / "megatron"))
    exported = export_to_hf(Export(tmp_path / "megatron", tmp_path / "back"))
    assert exported.architecture == "LlavaForConditionalGeneration" and exported.family.name == family
    wanted, found = weights(source), weights(tmp_path / "back")
    assert found.keys() == {name for name in wanted if not name.startswith(UNUSED)} | {
        f"vision_tower.post_layernorm.{kind}" for kind in ("weight", "bias")
    }
    for name, tensor in found.items():
        assert tensor.dtype == dtype, name
        assert name.startswith(UNUSED) or tensor.equal(wanted[name]), name
    assert llava_models.logits(tmp_path / "back").equal(llava_models.logits(source))


def test_a_mixture_goes_there_and_back(tmp_path: Path) -> None:
    """Our class's folder is imported as transformers' is."""
    source = llava_models.save(tmp_path / "source", "clip")
    import_checkpoint(Import(source, tmp_path / "megatron", upcycling=Upcycling(4, noise=0.1)))
    export_to_hf(Export(tmp_path / "megatron", tmp_path / "hf"))
    import_checkpoint(Import(tmp_path / "hf", tmp_path / "again"))
    one, other = (TorchDistCheckpoint(find_checkpoint(tmp_path / name)) for name in ("megatron", "again"))
    assert one.tensors == other.tensors
    assert all(one.read(key).equal(other.read(key)) for key in one.tensors)
    same = ("num_experts", "moe_router_topk", "experts_in", "moe_router_dtype", "vision_ffn_hidden_size")
    assert {name: one.arguments[name] for name in same} == {name: other.arguments[name] for name in same}


LOAD = """
import sys, torch, transformers
inputs = torch.load(sys.argv[2])
for name in ("AutoModel", "AutoModelForImageTextToText"):
    kind = getattr(transformers, name)
    model, report = kind.from_pretrained(sys.argv[1], trust_remote_code=True, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    with torch.no_grad():
        print(name, float((model.eval()(**inputs["given"]).logits - inputs["wanted"]).abs().max()))
"""


def test_experts_load_with_both_auto_classes_in_a_fresh_process(tmp_path: Path) -> None:
    source = llava_models.save(tmp_path / "source", "siglip", "qwen2")
    import_checkpoint(Import(source, tmp_path / "megatron", upcycling=Upcycling(8, granularity=2)))
    export_to_hf(Export(tmp_path / "megatron", tmp_path / "hf"))
    wanted = llava_models.logits(source)
    given = {
        "input_ids": llava_models.expanded(llava_models.tokens(), PATCHES),
        "pixel_values": llava_models.pictures(),
    }
    torch.save({"given": given, "wanted": wanted}, tmp_path / "inputs.pt")
    command = [sys.executable, "-c", LOAD, str(tmp_path / "hf"), str(tmp_path / "inputs.pt")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert said[::2] == ["AutoModel", "AutoModelForImageTextToText"]
    assert all(float(one) < 1e-5 * wanted.abs().max() for one in said[1::2])


@pytest.mark.parametrize("how", [None, Upcycling(4)], ids=["dense", "experts"])
@pytest.mark.parametrize(
    ("family", "text"), [("mixtral", {}), ("qwen2", {"tie_word_embeddings": True})], ids=["experts-behind", "tied"]
)
def test_decoders_behind_either_class(family: str, text: dict[str, Any], how: Upcycling | None, tmp_path: Path) -> None:
    """Names of fused experts, and a head that is the embedding, are transformers' to sort out under both classes."""
    source = llava_models.save(tmp_path / "source", "siglip", family, text=text)
    import_checkpoint(Import(source, tmp_path / "megatron", upcycling=how))
    arguments = TorchDistCheckpoint(find_checkpoint(tmp_path / "megatron")).arguments
    assert arguments["untie_embeddings_and_output_weights"] is not bool(text)
    export_to_hf(Export(tmp_path / "megatron", tmp_path / "hf"))
    wanted = llava_models.logits(source)
    found = llava_models.logits(tmp_path / "hf", AutoModelForImageTextToText, trust_remote_code=True)
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_the_processor_makes_what_the_model_takes(kind: str, tmp_path: Path) -> None:
    source = llava_models.save(tmp_path / "source", kind)
    import_checkpoint(Import(source, tmp_path / "megatron"))
    export_to_hf(Export(tmp_path / "megatron", tmp_path / "hf"))
    processor = AutoProcessor.from_pretrained(tmp_path / "hf")
    made = processor(text="w5 <image> w6", images=Image.new("RGB", (30, 20)), return_tensors="pt")
    assert made["input_ids"].tolist() == [[5, *[llava_models.IMAGE] * PATCHES, 6]]
    assert made["pixel_values"].shape == (1, 3, 18, 18)
    assert processor.chat_template == processor.tokenizer.chat_template != None  # noqa: E711


def changed(folder: Path, tmp_path: Path, **changes: Any) -> Path:
    """An import whose arguments say something else, as those of a run do."""
    from megatron_compete.checkpoint.megatron_writer import Chunk, write_release

    checkpoint = TorchDistCheckpoint(find_checkpoint(folder))
    chunks = [Chunk(key, (), (), one.shape, one.dtype, lambda key=key: checkpoint.read(key)) for key, one in checkpoint.tensors.items()]  # type: ignore[misc]  # fmt: skip
    (tmp_path / "changed").mkdir()
    write_release(tmp_path / "changed", checkpoint.arguments | changes, chunks)
    return tmp_path / "changed"


@pytest.mark.parametrize("kind", ["siglip", "clip"])
@pytest.mark.parametrize("ratio", [None, "pad", "resize"])
def test_pictures_are_made_as_in_training(kind: str, ratio: Any, tmp_path: Path) -> None:
    """The border that training makes where nothing else is said, and none where it made none."""
    source = llava_models.save(tmp_path / "source", kind)
    import_checkpoint(Import(source, tmp_path / "megatron"))
    beside = TorchDistCheckpoint(find_checkpoint(tmp_path / "megatron")).arguments["image_processor"]
    run = changed(tmp_path / "megatron", tmp_path, image_aspect_ratio=ratio, use_tiling=False)
    export_to_hf(Export(run, tmp_path / "hf"))
    wanted = Pixels(ConversationConfig(image_processor=beside, image_aspect_ratio=ratio), kind, 18, 18)(noise())
    torch.testing.assert_close(exported_pictures(tmp_path / "hf"), wanted, atol=1e-6, rtol=0)


def exported_pictures(folder: Path) -> torch.Tensor:
    return AutoProcessor.from_pretrained(folder)(text="<image>", images=noise(), return_tensors="pt")["pixel_values"]  # type: ignore[no-any-return]


def noise() -> Image.Image:
    values = torch.randint(0, 256, (21, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Image.fromarray(values.numpy())


@pytest.mark.parametrize("ratio", ["pad", "resize"])
def test_a_run_s_own_image_processor_goes_out(ratio: Any, tmp_path: Path) -> None:
    """Before that of --tokenizer-model, with a crop that is smaller than what pictures are resized to; and the defaults
    where the run had none, whatever lies beside the tokenizer."""
    source = llava_models.save(tmp_path / "source", "clip")
    import_checkpoint(Import(source, tmp_path / "megatron"))
    beside = Path(TorchDistCheckpoint(find_checkpoint(tmp_path / "megatron")).arguments["image_processor"])
    own = tmp_path / "own"
    own.mkdir()
    settings = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 24},
                "crop_size": {"height": 18, "width": 18}, "image_mean": [0.1, 0.2, 0.3], "resample": 2}  # fmt: skip
    (own / "preprocessor_config.json").write_text(json.dumps(settings))
    (beside / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0.7] * 3}))
    for name, given in (("run", str(own)), ("none", None)):
        (tmp_path / name).mkdir()
        run = changed(tmp_path / "megatron", tmp_path / name, image_processor=given, image_aspect_ratio=ratio)
        export_to_hf(Export(run, tmp_path / name / "hf", tokenizer_model=beside))
        wanted = Pixels(ConversationConfig(image_processor=given, image_aspect_ratio=ratio), "clip", 18, 18)(noise())
        torch.testing.assert_close(exported_pictures(tmp_path / name / "hf"), wanted, atol=1e-6, rtol=0)


def test_an_image_processor_that_has_moved(tmp_path: Path) -> None:
    """Is asked for, as a tokenizer is."""
    source = llava_models.save(tmp_path / "source")
    import_checkpoint(Import(source, tmp_path / "megatron"))
    beside = Path(TorchDistCheckpoint(find_checkpoint(tmp_path / "megatron")).arguments["image_processor"])
    run = changed(tmp_path / "megatron", tmp_path, image_processor=str(tmp_path / "gone"))
    for named, message in (
        (
            None,
            f"trained with --image-processor {tmp_path}/gone, where no preprocessor_config.json is now: give the folder",
        ),
        (tmp_path / "source", f"--image-processor {tmp_path}/source has no preprocessor_config.json: give the folder"),
    ):
        with pytest.raises(CompeteError, match=re.escape(message)):
            export_to_hf(Export(run, tmp_path / "hf", image_processor=named))
    export_to_hf(Export(run, tmp_path / "hf", image_processor=beside))
    written = [json.loads((one / "preprocessor_config.json").read_text()) for one in (tmp_path / "hf", beside)]
    assert written[0] == written[1]
    import_checkpoint(Import(hf_models.save(tmp_path / "words", "llama"), tmp_path / "language"))
    with pytest.raises(CompeteError, match=r"is of a vision-language model, and .*language takes no pictures"):
        export_to_hf(Export(tmp_path / "language", tmp_path / "other", image_processor=beside))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"moe_router_score_function": "sigmoid"},
            "--moe-router-score-function sigmoid, which SigLIP tower cannot represent",
        ),
        ({"router": "xmoe"}, "--router xmoe, which SigLIP tower cannot represent"),
        ({"normalization": "LayerNorm"}, "the language model is none of transformers' own architectures"),
        ({"img_w": 32}, "position_embeddings.weight has shape"),
        ({"image_token": "<picture>"}, "has no token <picture>, which stands for pictures"),
    ],
)
def test_what_no_llava_can_represent(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = llava_models.save(tmp_path / "source")
    import_checkpoint(Import(source, tmp_path / "megatron", upcycling=Upcycling(4)))
    run = changed(tmp_path / "megatron", tmp_path, **changes)
    with pytest.raises(CompeteError, match=message):
        export_to_hf(Export(run, tmp_path / "hf"))
    assert not (tmp_path / "hf").exists()


def test_without_a_tokenizer_an_import_keeps_the_image_token(tmp_path: Path) -> None:
    source = llava_models.save(tmp_path / "source", tokenizer=False)
    import_checkpoint(Import(source, tmp_path / "megatron"))
    export_to_hf(Export(tmp_path / "megatron", tmp_path / "hf"))
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["image_token_index"] == llava_models.IMAGE
    run = changed(tmp_path / "megatron", tmp_path, hf_image_token_id=None)
    with pytest.raises(CompeteError, match="the id of the image token <image> is in the Hugging Face tokenizer"):
        export_to_hf(Export(run, tmp_path / "other"))
