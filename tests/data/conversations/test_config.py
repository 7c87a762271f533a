import argparse
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.conversations.config import PIL_MAX_PIXELS, ConversationConfig, dest_of, flag_of


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"template": "vicuna"}, "--conversation-template vicuna is out of range: choose from tokenizer, vicuna_v1"),
        ({"max_num_tiles": 0}, "--max-num-tiles 0 is out of range: give 1 or more"),
        ({"max_num_tiles": 6}, "--max-num-tiles 6 has no effect without --use-tiling"),
        ({"use_thumbnail": True}, "--use-thumbnail has no effect without --use-tiling"),
        ({"use_tiling": True}, "--use-tiling cuts nothing at --max-num-tiles 1: give that 2 or more"),
        (
            {"use_tiling": True, "max_num_tiles": 2, "image_aspect_ratio": "pad"},
            "--image-aspect-ratio pad has no effect with --use-tiling",
        ),
        ({"max_image_pixels": 0}, "--max-image-pixels 0 is out of range"),
        ({"workers": 0}, "--conversation-workers 0 is out of range"),
        ({"energon_path": "d", "pack": True}, "--pack-conversations has no effect with --energon-path"),
        ({"energon_path": "d", "check_images": "decode"}, "--check-images has no effect with --energon-path"),
    ],
)
def test_what_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(CompeteError) as error:
        ConversationConfig(**given)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("name", ["image_folder", "image_processor"])
def test_folders_are_looked_for_where_they_are_read(name: str, tmp_path: Path) -> None:
    """A plan is made on a workstation that has none of them."""
    ConversationConfig(**{name: str(tmp_path)}).check_folders()
    missing = ConversationConfig(**{name: "none"})
    with pytest.raises(CompeteError, match=f"--{name.replace('_', '-')} none: no such folder"):
        missing.check_folders()


def test_arguments(tmp_path: Path) -> None:
    assert ConversationConfig.from_arguments(argparse.Namespace(seq_length=3)) == ConversationConfig()
    given = {"image_folder": str(tmp_path), "pack_conversations": True, "conversation_template": "plain"}
    wanted = ConversationConfig(image_folder=str(tmp_path), pack=True, template="plain")
    assert ConversationConfig.from_arguments(argparse.Namespace(**given)) == wanted
    flags = [flag_of(field.name) for field in dataclasses.fields(ConversationConfig)]
    assert len(set(flags)) == len(flags)
    assert [dest_of(name) for name in ("skip_bad", "image_folder")] == ["skip_bad_samples", "image_folder"]


def test_the_border_belongs_to_images_without_tiles() -> None:
    kinds: list[dict[str, Any]] = [
        {},
        {"image_aspect_ratio": "pad"},
        {"image_aspect_ratio": "resize"},
        {"use_tiling": True, "max_num_tiles": 2},
    ]
    assert [ConversationConfig(**kind).pads_to_square for kind in kinds] == [True, True, False, False]


def test_the_limit_of_pixels_is_pillow_s() -> None:
    """In a process that has not set another one."""
    found = subprocess.run(
        [sys.executable, "-c", "from PIL import Image; print(Image.MAX_IMAGE_PIXELS)"], capture_output=True, check=True
    )
    assert int(found.stdout) == PIL_MAX_PIXELS
