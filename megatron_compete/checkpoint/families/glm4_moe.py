"""GLM-4.5: grouped-query attention with optional bias, norms and partial rotation; DeepSeek-V3's mixture."""

from collections.abc import Mapping
from typing import Any

from megatron_compete.checkpoint.families.blocks import decoder, grouped_attention, sigmoid_moe
from megatron_compete.checkpoint.families.configs import (
    decoder_arguments,
    decoder_config,
    sigmoid_router_arguments,
    sigmoid_router_caution,
    sigmoid_router_config,
)
from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.family import Family
from megatron_compete.checkpoint.families.requirements import BLOCK, SIGMOID, SWITCH, allow, fraction


def _config(d: Dimensions, arguments: Mapping[str, Any]) -> dict[str, Any]:
    own = {
        "head_dim": d.head,
        "attention_bias": d.qkv_bias,
        "use_qk_norm": d.qk_norm,
        "partial_rotary_factor": float(arguments.get("rotary_percent", 1.0)),
    }
    return decoder_config(d, arguments) | sigmoid_router_config(d, arguments) | own


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    own = {"add_qkv_bias": config["attention_bias"], "qk_layernorm": config["use_qk_norm"]}
    return decoder_arguments(config) | sigmoid_router_arguments(config) | own


GLM4_MOE = Family(
    name="glm4_moe",
    title="GLM-4-MoE",
    architecture="Glm4MoeForCausalLM",
    requirements=allow(BLOCK, add_qkv_bias=SWITCH, qk_layernorm=SWITCH, rotary_percent=fraction) + SIGMOID,
    tensors=lambda d: decoder(d, grouped_attention, sigmoid_moe),
    to_config=_config,
    to_arguments=_arguments,
    caution=sigmoid_router_caution,
)
