"""The files that turn pictures and prompts into a model's inputs: transformers' `LlavaProcessor`.

An import puts them into the tokenizer's folder, where training finds the image processor (--image-processor) and an export
all of them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_compete.checkpoint.families.vision import vision_settings
from megatron_compete.checkpoint.hf_reader import read_json
from megatron_compete.common.errors import CompeteError
from megatron_compete.data.conversations.pixels import PROCESSOR_FILE as IMAGE_PROCESSOR
from megatron_compete.data.conversations.pixels import default_settings, processor_of

PROCESSOR = "processor_config.json"
TEMPLATE, OLD_TEMPLATE = "chat_template.jinja", "chat_template.json"


def image_settings(folder: Path) -> dict[str, Any] | None:
    """Settings of the image processor that a folder has, in either of transformers' places; None where it has none.

    Raises:
        CompeteError: a file that is not JSON.
    """
    if (folder / IMAGE_PROCESSOR).is_file():
        return read_json(folder / IMAGE_PROCESSOR)
    inner = read_json(folder / PROCESSOR).get("image_processor") if (folder / PROCESSOR).is_file() else None
    return inner if isinstance(inner, dict) else None


def tower_settings(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the image processor that training takes for the model's tower where it is given none."""
    kind = vision_settings(arguments).model_type
    assert kind is not None
    return default_settings(kind, int(arguments["img_h"]), int(arguments["img_w"]))


def trained_settings(arguments: Mapping[str, Any], named: Path | None) -> dict[str, Any]:
    """Settings of the image processor of training, with its border.

    Args:
        named: the folder, where it is no longer what the arguments say.
    Raises:
        CompeteError: the folder of the run, or `named`, has no image processor.
    """
    folder = named or arguments.get("image_processor")
    settings = image_settings(Path(str(folder))) if folder else tower_settings(arguments)
    if settings is None and named:
        raise CompeteError(f"--image-processor {named} has no {IMAGE_PROCESSOR}: give the folder that has it")
    if settings is None:
        raise CompeteError(
            f"trained with --image-processor {folder}, where no {IMAGE_PROCESSOR} is now: give the folder that has it as "
            "--image-processor"
        )
    return padded_settings(settings) if pads(arguments) else settings


def padded_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same for pictures that are made square by a border of the mean colour, as training did (--image-aspect-ratio pad)."""
    complete = processor_of(settings).to_dict()  # what it leaves out has other defaults in the class that pads
    return {"do_center_crop": False, **complete, "do_pad": True, "image_processor_type": "LlavaImageProcessor"}


def pads(arguments: Mapping[str, Any]) -> bool:
    """Whether training made pictures square by a border; an import that has not been trained says nothing of it."""
    if "image_aspect_ratio" not in arguments:
        return False
    given = arguments["image_aspect_ratio"]
    return given == "pad" or (given is None and not arguments.get("use_tiling"))


def processor_settings(arguments: Mapping[str, Any], image_token: str) -> dict[str, Any]:
    """Content of processor_config.json: how many tokens a picture takes, and which."""
    settings = vision_settings(arguments)
    return {
        "processor_class": "LlavaProcessor",
        "image_token": image_token,
        "num_additional_image_tokens": int(settings.model_type == "clip"),
        "patch_size": int(arguments["patch_dim"]),
        "vision_feature_select_strategy": "default" if settings.disable_class_token else "full",
    }


def write_processor(folder: Path, images: Mapping[str, Any], arguments: Mapping[str, Any], image_token: str) -> None:
    """Write both files, and prove that the image processor makes pictures of the tower's size.

    Raises:
        CompeteError: it makes others, or transformers cannot load it.
    """
    for name, content in ((IMAGE_PROCESSOR, images), (PROCESSOR, processor_settings(arguments, image_token))):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    _check_size(folder, (3, int(arguments["img_h"]), int(arguments["img_w"])))


def copy_template(source: Path, folder: Path) -> None:
    """A chat template in the form that processors had, as the file that tokenizers and processors read now."""
    if not (source / OLD_TEMPLATE).is_file() or (folder / TEMPLATE).exists():
        return
    template = read_json(source / OLD_TEMPLATE).get("chat_template")
    if not isinstance(template, str):
        raise CompeteError(f"{source / OLD_TEMPLATE} has no chat_template: repair or remove it")
    (folder / TEMPLATE).write_text(template, encoding="utf-8")


def _check_size(folder: Path, wanted: tuple[int, int, int]) -> None:
    from PIL import Image
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        made = processor(images=Image.new("RGB", (wanted[2] + 5, wanted[1] + 3)), return_tensors="np")["pixel_values"]
    except Exception as error:  # the classes fail in many ways
        raise CompeteError(f"the model's {IMAGE_PROCESSOR} cannot be used: {type(error).__name__}: {error}") from error
    if made.shape[1:] != wanted:
        raise CompeteError(
            f"the model's {IMAGE_PROCESSOR} makes pictures of {' x '.join(map(str, made.shape[1:]))}, and its tower takes "
            f"{' x '.join(map(str, wanted))}: set its size"
        )
