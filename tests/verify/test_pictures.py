"""Pixels of an export's processor and of the run: the same, others, and what cannot be compared."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_compete.checkpoint.vlm.processor import trained_settings, write_processor
from megatron_compete.common.errors import CompeteError
from megatron_compete.data.conversations.pixels import default_settings
from megatron_compete.verify.pictures import compare_pictures
from tests.checkpoint.vlm.llava_models import save_tokenizer

SIDE = 18


def arguments(kind: str, **more: Any) -> dict[str, Any]:
    sizes = {"img_h": SIDE, "img_w": SIDE, "patch_dim": 4, "vision_num_layers": 2, "vision_hidden_size": 24}
    return {"vision_model_type": kind, "vision_num_attention_heads": 3, "image_aspect_ratio": None} | sizes | more


def exported(folder: Path, run: dict[str, Any], **changes: Any) -> Path:
    """Processor files as an export writes them, `changes` in its settings."""
    folder.mkdir()
    save_tokenizer(folder)
    write_processor(folder, trained_settings(run, None) | changes, run, "<image>")
    return folder


@pytest.mark.parametrize("kind", ["siglip", "clip"])
@pytest.mark.parametrize("ratio", [None, "resize"])
def test_the_same_pixels(kind: str, ratio: str | None, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "preprocessor_config.json").write_text(
        json.dumps(default_settings(kind, SIDE, SIDE) | {"image_std": [0.3] * 3})
    )
    for name, folder in (("default", None), ("given", str(own))):
        run = arguments(kind, image_aspect_ratio=ratio, image_processor=folder)
        assert compare_pictures(exported(tmp_path / name, run), run) == ""


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({"image_mean": [0.51, 0.5, 0.5]}, {}),
        ({"resample": 2}, {}),
        ({"do_pad": False}, {}),
        ({}, {"image_aspect_ratio": "resize"}),
    ],
    ids=["mean", "resampling", "border", "no border in training"],
)
def test_other_pixels(changes: dict[str, Any], more: dict[str, Any], tmp_path: Path) -> None:
    """Of the right size and number of tokens."""
    run = arguments("siglip")
    hf = exported(tmp_path / "hf", run, **changes)
    with pytest.raises(
        CompeteError, match=r"makes other pixels than training had of a picture of 43 x 23 \(up to .* apart"
    ):
        compare_pictures(hf, run | more)


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    run = arguments("siglip")
    hf = exported(tmp_path / "hf", run)
    assert "tiles" in compare_pictures(hf, run | {"use_tiling": True})
    assert compare_pictures(hf, run | {"image_processor": "/gone"}) == "--image-processor /gone is not there"
    assert compare_pictures(tmp_path, run) == "no processor there"
    (hf / "preprocessor_config.json").write_text('{"image_processor_type": "OtherImageProcessor"}')
    with pytest.raises(CompeteError, match="its image processor cannot be used"):
        compare_pictures(hf, run)
