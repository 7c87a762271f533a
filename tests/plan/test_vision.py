"""What a plan takes the parts before a decoder to be: tokens, tiles and gradients, by hand."""

from types import SimpleNamespace
from typing import Any

from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_compete.plan.layers import LayerKind
from megatron_compete.plan.vision import Vision
from megatron_compete.vlm.config import PARTS, VisionConfig
from megatron_compete.vlm.parts import VisionLanguageConfig

DATA = {"use_tiling": False, "max_num_tiles": 1, "use_thumbnail": False, "pack_conversations": False, "seq_length": 64}


def vision(settings: dict[str, Any] | None = None, **data: Any) -> Vision:
    """A tower of two layers on tiles of 4 x 3 patches, before a decoder of four."""
    tower = {"model_type": "siglip", "num_layers": 2, "hidden_size": 24, "num_attention_heads": 2} | (settings or {})
    base = TransformerConfig(num_layers=4, hidden_size=32, num_attention_heads=4, num_moe_experts=4, moe_router_topk=2)
    config = VisionLanguageConfig.of(base, VisionConfig(**tower), img_h=16, img_w=12, patch_dim=4)
    args: Any = SimpleNamespace(**(DATA | data))
    return Vision.of(args, config)


def test_tokens_of_a_tile() -> None:
    """A class token counts in a clip tower, and in the decoder unless it is left out."""
    without = {"model_type": "clip", "disable_class_token": True}
    lengths = [
        (one.sequence_length("vision"), one.sequence_length("projector"))
        for one in (vision(), vision({"model_type": "clip"}), vision(without))
    ]
    assert lengths == [(12, 12), (13, 13), (13, 12)]


def test_tiles_of_a_sequence() -> None:
    assert vision().tiles == 1
    assert vision(use_tiling=True, max_num_tiles=3).tiles == 3
    assert vision(use_tiling=True, max_num_tiles=3, use_thumbnail=True).tiles == 4
    assert vision(pack_conversations=True).tiles == 64 // 12
    assert vision(pack_conversations=True, use_tiling=True, max_num_tiles=2).tiles == 2 * (64 // 24)


def test_layers_are_what_experts_are_in() -> None:
    dense = vision({"experts_in": ("projector",)})
    assert [dense.layer_kind(part) for part in PARTS[:2]] == [
        LayerKind("attention", "mlp"), LayerKind(None, "moe", normed=False),
    ]  # fmt: skip
    assert dense.layer_kind("vision").norms == 2 and dense.layer_kind("projector").norms == 0


def test_what_is_taken_for_granted_is_said() -> None:
    (sample, length) = vision().assumptions()
    assert sample.startswith("every sample has pictures of one tile, 12 embeddings each") and "--seq-length" in length
    (packed, frozen) = vision({"freeze_language": True}, pack_conversations=True).assumptions()
    assert packed.startswith("every packed sequence has pictures of 5 tiles") and "frozen decoder" in frozen
