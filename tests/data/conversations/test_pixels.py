"""Pixels against transformers' own processors, bit for bit."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.conversations.config import ConversationConfig
from megatron_compete.data.conversations.pixels import PROCESSOR_FILE, Pixels, default_settings
from tests.data.conversations.tiny import picture

SIZES = [(40, 40), (57, 32), (20, 91), (28, 28)]
CLIP_SIZES: dict[str, Any] = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}


def pixels(kind: str = "siglip", side: int = 28, **config: Any) -> Pixels:
    return Pixels(ConversationConfig(**config), kind, side, side)


def processed(processor: Any, image: Image.Image) -> Tensor:
    values: Tensor = processor(image, return_tensors="pt")["pixel_values"]
    return values


@pytest.mark.parametrize("size", SIZES)
def test_resized_images_are_the_processor_s(size: tuple[int, int]) -> None:
    image = picture(*size)
    siglip = transformers.SiglipImageProcessorPil(size={"height": 28, "width": 28})
    clip = transformers.CLIPImageProcessorPil(**CLIP_SIZES)
    for kind, processor in (("siglip", siglip), ("clip", clip)):
        found = pixels(kind, image_aspect_ratio="resize")(image)
        assert found.dtype == torch.float32 and torch.equal(found, processed(processor, image))


@pytest.mark.parametrize("size", SIZES)
def test_padded_images_are_those_of_llava_s_processor(size: tuple[int, int]) -> None:
    """transformers has LLaVA's border as `LlavaImageProcessor(do_pad=True)`; the default here."""
    image = picture(*size)
    llava = transformers.LlavaImageProcessorPil(do_pad=True, **CLIP_SIZES)
    assert torch.equal(pixels("clip")(image), processed(llava, image))
    assert torch.equal(pixels("clip", image_aspect_ratio="pad")(image), processed(llava, image))


@pytest.mark.parametrize("kind", ["SiglipImageProcessorPil", "CLIPImageProcessorPil", "LlavaImageProcessorPil"])
def test_a_folder_s_processor(kind: str, tmp_path: Path) -> None:
    sizes = CLIP_SIZES if "Siglip" not in kind else {"size": {"height": 28, "width": 28}}
    saved = getattr(transformers, kind)(**sizes, image_mean=[0.1, 0.2, 0.3], resample=2)
    saved.save_pretrained(tmp_path)
    image = picture(50, 30)
    found = pixels("clip", image_processor=str(tmp_path), image_aspect_ratio="resize")(image)
    assert torch.equal(found, processed(saved, image))
    auto = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert torch.equal(found, processed(auto, image))


def test_older_names_of_processors(tmp_path: Path) -> None:
    """transformers 4 writes `Fast` behind a name, and before that it had feature extractors."""
    transformers.CLIPImageProcessorPil(**CLIP_SIZES).save_pretrained(tmp_path)
    path = tmp_path / PROCESSOR_FILE
    written = path.read_text()
    wanted = pixels("clip")(picture(50, 30))
    for key, name in (
        ("image_processor_type", "CLIPImageProcessorFast"),
        ("feature_extractor_type", "CLIPFeatureExtractor"),
    ):
        path.write_text(written.replace('"image_processor_type": "CLIPImageProcessor"', f'"{key}": "{name}"'))
        assert torch.equal(pixels("clip", image_processor=str(tmp_path))(picture(50, 30)), wanted)


def test_tiles_are_processed_as_images() -> None:
    image = picture(60, 30)
    siglip = transformers.SiglipImageProcessorPil(size={"height": 28, "width": 28})
    both = pixels(use_tiling=True, max_num_tiles=4, use_thumbnail=True)
    found = both(image)
    assert found.shape == (3, 3, 28, 28) and both.count(60, 30) == 3
    large = image.resize((56, 28))
    parts = [large.crop((0, 0, 28, 28)), large.crop((28, 0, 56, 28)), image.resize((28, 28))]
    assert torch.equal(found, torch.cat([processed(siglip, part) for part in parts]))
    assert pixels().count(60, 30) == 1 and pixels().none().shape == (0, 3, 28, 28)


def test_sides_of_two_lengths() -> None:
    wide = Pixels(ConversationConfig(), "siglip", 14, 28)(picture(30, 20))
    assert wide.shape == (1, 3, 14, 28)
    assert Pixels(ConversationConfig(), "clip", 14, 28)(picture(30, 20)).shape == (1, 3, 14, 28)
    with pytest.raises(CompeteError, match="--use-tiling cuts squares: give --img-h 14 and --img-w 28 one value"):
        Pixels(ConversationConfig(use_tiling=True, max_num_tiles=2), "siglip", 14, 28)


@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_the_defaults_are_transformers_own(kind: str) -> None:
    """Every number of them, so that what an export writes is what its class would do."""
    settings = default_settings(kind, 28, 28)
    given = {name: settings[name] for name in ("size", "crop_size") if name in settings}
    own = getattr(transformers, settings["image_processor_type"] + "Pil")(**given).to_dict()
    assert {name: list(one) if isinstance(one, tuple) else one for name, one in own.items()} == settings


def test_processors_that_cannot_serve(tmp_path: Path) -> None:
    with pytest.raises(
        CompeteError, match="--vision-model-type radio has no image processor here: give --image-processor"
    ):
        pixels("radio")
    with pytest.raises(CompeteError, match=f"{PROCESSOR_FILE} cannot be read: .*No such file"):
        pixels(image_processor=str(tmp_path))
    (tmp_path / PROCESSOR_FILE).write_text('{"image_processor_type": "OtherImageProcessor"}')
    with pytest.raises(CompeteError, match="names 'OtherImageProcessor', which transformers does not have"):
        pixels(image_processor=str(tmp_path))
    transformers.SiglipImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    message = f"--image-processor {tmp_path} makes pixels of shape [1, 3, 16, 16] and not [1, 3, 28, 28]"
    with pytest.raises(CompeteError, match=re.escape(message)):
        pixels(image_processor=str(tmp_path))
