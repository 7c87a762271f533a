"""Settings of tower and projector, and their checks."""

import argparse
from typing import Any

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.vlm.config import VisionConfig, dest_of, flag_of

TOWER: dict[str, Any] = dict(model_type="siglip", num_layers=2, hidden_size=64, num_attention_heads=4)


def test_a_language_model_has_no_settings_of_a_tower() -> None:
    assert VisionConfig.from_arguments(argparse.Namespace(num_layers=2)) == VisionConfig()
    with pytest.raises(CompeteError, match=r"^--freeze-ViT is about a vision tower: give --vision-model-type"):
        VisionConfig(freeze_tower=True)


def test_settings_come_from_arguments_by_megatrons_names() -> None:
    config = VisionConfig(**TOWER, experts_in=("language", "vision"), freeze_language=True, recompute=True)
    names = [*TOWER, "experts_in", "freeze_language", "recompute"]
    given = argparse.Namespace(**{dest_of(name): getattr(config, name) for name in names})
    assert VisionConfig.from_arguments(given) == config
    assert {flag_of(name) for name in ("freeze_language", "recompute", "num_layers")} == {
        "--freeze-LM", "--recompute-vision", "--vision-num-layers",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_layers": None}, "--vision-model-type siglip needs --vision-num-layers"),
        ({"num_layers": 0}, "--vision-num-layers 0 is out of range: give 1 or more"),
        ({"num_attention_heads": 5}, "--vision-hidden-size 64 is no multiple of --vision-num-attention-heads 5"),
        ({"model_type": "radio"}, "--vision-model-type radio is out of range: choose from clip, siglip"),
        (
            {"experts_in": ("tower",)},
            "--experts-in tower is no part of a model: choose from vision, projector, language",
        ),
        ({"disable_class_token": True}, "--disable-vision-class-token has no effect on a siglip tower"),
        (dict(freeze_language=True, freeze_tower=True, freeze_projector=True), "leave nothing to train"),
    ],
)
def test_bad_settings_are_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(CompeteError, match=words):
        VisionConfig(**TOWER | change)


def test_epsilon_is_the_kinds_own() -> None:
    assert VisionConfig(**TOWER).epsilon == 1e-6
    assert VisionConfig(**TOWER | {"model_type": "clip"}).epsilon == 1e-5
    assert VisionConfig(**TOWER, layernorm_epsilon=1e-3).epsilon == 1e-3
