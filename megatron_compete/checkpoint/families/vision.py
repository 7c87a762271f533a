"""What the vision towers share: their sizes, their arguments and their config.json, in both directions.

LLaVA takes a tower's states before its last layers and before the norm behind them. Megatron's tower has the layers up to
there and nothing else, so what comes after is no part of a checkpoint.
"""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.requirements import EXPERTS, Requirement
from megatron_compete.common.errors import CompeteError
from megatron_compete.vlm.config import Part, VisionConfig

EXPERTS_OF_PARTS: tuple[Requirement, ...] = tuple(
    one for one in EXPERTS if one.argument == "router" or one.argument.startswith("moe_router")
) + tuple(one for one in EXPERTS if one.argument in ("moe_apply_probs_on_input", "moe_expert_capacity_factor"))
"""Of tower and projector: their routers are as the language model's, experts are of their own."""


def vision_settings(arguments: Mapping[str, Any]) -> VisionConfig:
    """Settings of tower and projector among a checkpoint's arguments."""
    return VisionConfig.from_arguments(Namespace(**arguments))


def is_vision_language(arguments: Mapping[str, Any]) -> bool:
    """Whether the arguments make a vision-language model."""
    return bool(arguments.get("vision_model_type"))


def experts_of(arguments: Mapping[str, Any], part: Part) -> tuple[int, int]:
    """Experts of each layer of a part, and how many of them a token takes; 0 experts where its MLPs are dense."""
    settings, experts = vision_settings(arguments), int(arguments.get("num_experts") or 0)
    k = int(arguments.get("moe_router_topk", 2))
    if not experts or part not in settings.experts_in:
        return 0, k
    if part == "language":
        return experts, k
    return settings.num_experts or experts, settings.router_topk or k


def _sizes(arguments: Mapping[str, Any], part: Part, layers: int, ffn: int, **more: Any) -> Dimensions:
    experts, k = experts_of(arguments, part)
    return Dimensions(
        layers=layers, ffn=ffn, expert_ffn=ffn, shared_ffn=0, experts=experts, topk=k,
        moe_layers=(bool(experts),) * layers, tied=False, stacked=True, padded_vocab=0, vocab=0,
        qkv_bias=True, layer_norm=True, gated=False, **more,
    )  # fmt: skip


def tower_dimensions(arguments: Mapping[str, Any]) -> Dimensions:
    """Sizes of the tower."""
    settings = vision_settings(arguments)
    assert settings.num_layers and settings.hidden_size and settings.num_attention_heads
    hidden, heads = settings.hidden_size, settings.num_attention_heads
    height, width, patch = (int(arguments[name]) for name in ("img_h", "img_w", "patch_dim"))
    return _sizes(
        arguments, "vision", settings.num_layers, settings.ffn_hidden_size or 4 * hidden,
        hidden=hidden, groups=heads, heads_per_group=1, head=hidden // heads, patch=patch,
        positions=(height // patch) * (width // patch) + (settings.model_type == "clip"),
    )  # fmt: skip


def projector_dimensions(arguments: Mapping[str, Any]) -> Dimensions:
    """Sizes of the projector; experts, which Megatron stores along the first axis as it does layers, are its layers."""
    settings, hidden = vision_settings(arguments), int(arguments["hidden_size"])
    assert settings.hidden_size
    experts, _ = experts_of(arguments, "projector")
    return _sizes(
        arguments, "projector", experts or 1, settings.projector_ffn_hidden_size or hidden,
        hidden=hidden, groups=1, heads_per_group=1, head=1, inputs=settings.hidden_size,
    )  # fmt: skip


def tower_config(d: Dimensions, arguments: Mapping[str, Any], activation: str) -> dict[str, Any]:
    """What both towers state.

    Raises:
        CompeteError: pictures that are not square.
    """
    height, width = (int(arguments[name]) for name in ("img_h", "img_w"))
    if height != width:
        raise CompeteError(
            f"trained with --img-h {height} and --img-w {width}: towers of transformers take square pictures"
        )
    return {
        "hidden_size": d.hidden,
        "intermediate_size": d.ffn,
        "num_hidden_layers": d.layers,
        "num_attention_heads": d.heads,
        "num_channels": 3,
        "image_size": height,
        "patch_size": d.patch,
        "hidden_act": activation,
        "layer_norm_eps": vision_settings(arguments).epsilon,
        "attention_dropout": 0.0,
    }


def tower_arguments(config: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """Megatron's arguments for a tower; `num_hidden_layers` is what LLaVA takes of it."""
    size, patch = config["image_size"], config["patch_size"]
    return {
        "vision_model_type": model_type,
        "vision_num_layers": config["num_hidden_layers"],
        "vision_hidden_size": config["hidden_size"],
        "vision_ffn_hidden_size": config["intermediate_size"],
        "vision_num_attention_heads": config["num_attention_heads"],
        "vision_layernorm_epsilon": config["layer_norm_eps"],
        "img_h": size,
        "img_w": size,
        "patch_dim": patch,
    }
