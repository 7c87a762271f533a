"""Qwen3-MoE: normalised queries and keys, a head size of its own, softmax router with or without renormalisation."""

from collections.abc import Iterator, Mapping
from typing import Any

from megatron_compete.checkpoint.families.blocks import MLP, decoder, grouped_attention, router
from megatron_compete.checkpoint.families.configs import (
    decoder_arguments,
    decoder_config,
    softmax_router_arguments,
    sparse_config,
    sparse_layers,
)
from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.family import Family, TensorRule
from megatron_compete.checkpoint.families.requirements import BLOCK, EXPERTS, QK_NORM, SWITCH, allow, anything, changed


def _mlp(d: Dimensions, layer: int, prefix: str) -> Iterator[TensorRule]:
    if not d.moe_layers[layer]:
        yield from MLP.dense(d, layer, prefix + "mlp.")
        return
    yield router(d, layer, prefix + "mlp.gate.weight")
    yield from MLP.experts(d, layer, prefix + "mlp.experts.")


def _config(d: Dimensions, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return decoder_config(d, arguments) | sparse_config(d, arguments) | {"head_dim": d.head, "attention_bias": False}


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    experts = softmax_router_arguments(config, config["num_local_experts"], config["moe_intermediate_size"])
    return decoder_arguments(config) | experts | {"qk_layernorm": True, "moe_layer_freq": sparse_layers(config)}


QWEN3_MOE = Family(
    name="qwen3_moe",
    title="Qwen3-MoE",
    architecture="Qwen3MoeForCausalLM",
    requirements=changed(BLOCK, QK_NORM) + allow(EXPERTS, moe_router_pre_softmax=SWITCH, moe_layer_freq=anything),
    tensors=lambda d: decoder(d, grouped_attention, _mlp),
    to_config=_config,
    to_arguments=_arguments,
)
