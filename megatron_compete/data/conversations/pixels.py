"""From an image to the pixels that the vision tower sees, by the tower's Hugging Face image processor.

Always the processor on Pillow, whose numbers do not depend on whether torchvision is installed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.conversations.config import ConversationConfig
from megatron_compete.data.conversations.tiles import cut, grid_of, tile_count

if TYPE_CHECKING:
    from PIL.Image import Image

PROCESSOR_FILE = "preprocessor_config.json"

BICUBIC = 3
"""PIL's number of the resampling."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "siglip": {
        "image_processor_type": "SiglipImageProcessor", "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    },
    "clip": {
        "image_processor_type": "CLIPImageProcessor", "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    },
}  # fmt: skip
"""By --vision-model-type; transformers' own of the kind."""


class Pixels:
    """What images become.

    Args:
        config: processor, border and tiles.
        vision_model_type: `siglip` or `clip`, whose processor is taken where the settings name none.
        img_h: height of a tile.
        img_w: width of a tile.
    Raises:
        CompeteError: no such processor, or one that gives other sizes.
    """

    def __init__(self, config: ConversationConfig, vision_model_type: str, img_h: int, img_w: int) -> None:
        self.config, self.height, self.width = config, img_h, img_w
        if config.use_tiling and img_h != img_w:
            raise CompeteError(f"--use-tiling cuts squares: give --img-h {img_h} and --img-w {img_w} one value")
        folder = config.image_processor
        self.processor = (
            _processor_from(folder) if folder else processor_of(default_settings(vision_model_type, img_h, img_w))
        )
        mean = self.processor.image_mean
        self._border = tuple(int(255 * part) for part in mean)
        self._check_size()

    def count(self, width: int, height: int) -> int:
        """Tiles of an image of this size."""
        if not self.config.use_tiling:
            return 1
        return tile_count(self._grid(width, height), self.config.use_thumbnail)

    def __call__(self, image: "Image") -> Tensor:
        """Pixels [tiles, 3, img_h, img_w], fp32, of an RGB image."""
        if self.config.use_tiling:
            parts = cut(image, self._grid(*image.size), self.height, self.config.use_thumbnail)
        else:
            parts = [squared(image, self._border) if self.config.pads_to_square else image]
        return self._process(parts)

    def none(self) -> Tensor:
        """What a sample without images has: [0, 3, img_h, img_w]."""
        return torch.empty(0, 3, self.height, self.width)

    def _grid(self, width: int, height: int) -> Any:
        return grid_of(width, height, self.height, self.config.max_num_tiles)

    def _process(self, parts: "list[Image]") -> Tensor:
        pixels: Tensor = self.processor(parts, return_tensors="pt")["pixel_values"]
        return pixels

    def _check_size(self) -> None:
        from PIL import Image

        shape = tuple(self(Image.new("RGB", (self.width + 8, self.height + 8))).shape)
        wanted = (self.count(self.width + 8, self.height + 8), 3, self.height, self.width)
        if shape != wanted:
            raise CompeteError(
                f"--image-processor {self.config.image_processor} makes pixels of shape {list(shape)} and not {list(wanted)} "
                f"(tiles, colours, --img-h, --img-w): give its sizes, or another processor"
            )


def squared(image: "Image", colour: tuple[int, ...]) -> "Image":
    """The image in the middle of a square as long as its longer side."""
    from PIL import Image

    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new(image.mode, (side, side), colour)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def default_settings(vision_model_type: str, img_h: int, img_w: int) -> dict[str, Any]:
    """Of the image processor where none is given: transformers' own of the kind of tower, for pictures of a size.

    Raises:
        CompeteError: there is none for the kind.
    """
    if vision_model_type not in DEFAULTS:
        raise CompeteError(
            f"--vision-model-type {vision_model_type} has no image processor here: give --image-processor FOLDER"
        )
    size = {"height": img_h, "width": img_w}
    steps = dict.fromkeys(("do_convert_rgb", "do_normalize", "do_rescale", "do_resize"), True)
    made = steps | DEFAULTS[vision_model_type] | {"resample": BICUBIC, "rescale_factor": 1 / 255, "size": size}
    if vision_model_type == "clip":  # the middle of the picture, whose shorter side has to fill both of the tower's
        made |= {"size": {"shortest_edge": max(img_h, img_w)}, "crop_size": size, "do_center_crop": True}
    return made


def processor_of(settings: Mapping[str, Any]) -> Any:
    """transformers' image processor of the content of a preprocessor_config.json.

    Raises:
        CompeteError: transformers has none of the name.
    """
    name = _name_in(settings)
    made = _class_of(name)
    if made is None:
        raise CompeteError(f"{PROCESSOR_FILE} names {name!r}, which transformers does not have")
    return made.from_dict(dict(settings))


def _processor_from(folder: str) -> Any:
    path = Path(folder, PROCESSOR_FILE)
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        name = _name_in(settings)
    except (OSError, ValueError, AttributeError) as error:
        raise CompeteError(f"--image-processor {folder}: {path} cannot be read: {error}") from error
    made = _class_of(name)
    if made is None:
        raise CompeteError(f"--image-processor {folder} names {name!r}, which transformers does not have")
    return made.from_pretrained(folder)


def _name_in(settings: Mapping[str, Any]) -> str:
    """Of the class, in the form of today."""
    name = str(settings.get("image_processor_type") or settings.get("feature_extractor_type", ""))
    return name.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")


def _class_of(name: str) -> Any:
    """transformers' class of that name on Pillow: with a suffix from version 5 on."""
    import transformers

    return getattr(transformers, f"{name.removesuffix('Pil')}Pil", None) or getattr(transformers, name, None)
