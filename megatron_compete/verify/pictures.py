"""Does an export's image processor make the pixels that training saw? One picture of noise, by both."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_compete.checkpoint.vlm.processor import PROCESSOR, pads
from megatron_compete.common.errors import CompeteError
from megatron_compete.data.conversations.config import ConversationConfig
from megatron_compete.data.conversations.pixels import Pixels

SAME = 1e-4
"""Largest difference of two pixels that are the same, in a scale of which a step of 1 in 255 is 0.004 or more."""


def compare_pictures(hf: Path, arguments: Mapping[str, Any], trust_remote_code: bool = False) -> str:
    """Compare the processor in `hf` with that of a run with `arguments`, both on Pillow.

    Returns:
        Why there was nothing to compare; empty where both make the same pixels.
    Raises:
        CompeteError: they make others, or one of them cannot be used.
    """
    if not (hf / PROCESSOR).is_file():
        return "no processor there"
    if arguments.get("use_tiling"):
        return "trained on tiles, which the processor does not make"
    folder = arguments.get("image_processor")
    if folder and not Path(str(folder)).is_dir():
        return f"--image-processor {folder} is not there"
    config = ConversationConfig(
        image_processor=str(folder) if folder else None, image_aspect_ratio="pad" if pads(arguments) else "resize"
    )
    wanted = Pixels(config, str(arguments["vision_model_type"]), int(arguments["img_h"]), int(arguments["img_w"]))
    picture = _noise(2 * wanted.width + 7, wanted.height + 5)
    difference = _difference(_pixels(hf, picture, trust_remote_code), wanted(picture))
    if not difference <= SAME:
        raise CompeteError(
            f"--hf {hf}: its image processor makes other pixels than training had of a picture of {picture.width} x "
            f"{picture.height} (up to {difference:.2g} apart): export it again, with --image-processor where its folder has "
            "moved"
        )
    return ""


def _noise(width: int, height: int) -> Any:
    """A picture of that many random pixels in colour."""
    from PIL import Image

    values = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Image.fromarray(values.numpy())


def _pixels(hf: Path, picture: Any, trust_remote_code: bool) -> Tensor:
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(hf, backend="pil", trust_remote_code=trust_remote_code)
        found: Tensor = processor(picture, return_tensors="pt")["pixel_values"]
    except Exception as error:  # the classes fail in many ways
        raise CompeteError(f"--hf {hf}: its image processor cannot be used: {type(error).__name__}: {error}") from error
    return found


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max()) if one.shape == other.shape else float("inf")
