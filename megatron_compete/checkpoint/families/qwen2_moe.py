"""Qwen2-MoE: a gated shared expert beside the routed ones, optional bias on queries, keys and values."""

from collections.abc import Iterator, Mapping
from typing import Any

from megatron_compete.checkpoint.families.blocks import MLP, decoder, grouped_attention, router, same
from megatron_compete.checkpoint.families.configs import (
    decoder_arguments,
    decoder_config,
    softmax_router_arguments,
    sparse_config,
    sparse_layers,
)
from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.family import Family, TensorRule
from megatron_compete.checkpoint.families.requirements import (
    BLOCK,
    DERIVED_HEAD,
    EXPERTS,
    ON,
    SWITCH,
    Requirement,
    allow,
    anything,
    changed,
    positive,
)

SHARED = (
    Requirement("moe_shared_expert_intermediate_size", None, positive, "it has a shared expert in every such layer"),
    Requirement("moe_shared_expert_gate", False, ON, "it gates its shared expert: train with --moe-shared-expert-gate"),
)


def _mlp(d: Dimensions, layer: int, prefix: str) -> Iterator[TensorRule]:
    if not d.moe_layers[layer]:
        yield from MLP.dense(d, layer, prefix + "mlp.")
        return
    yield router(d, layer, prefix + "mlp.gate.weight")
    yield from MLP.experts(d, layer, prefix + "mlp.experts.")
    yield from MLP.shared(d, layer, prefix + "mlp.shared_expert.")
    yield same(layer, "mlp.shared_experts.gate_weight", prefix + "mlp.shared_expert_gate.weight", 1, d.hidden)


def _config(d: Dimensions, arguments: Mapping[str, Any]) -> dict[str, Any]:
    shared = {"qkv_bias": d.qkv_bias, "shared_expert_intermediate_size": d.shared_ffn}
    return decoder_config(d, arguments) | sparse_config(d, arguments) | shared


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    experts = softmax_router_arguments(config, config["num_experts"], config["moe_intermediate_size"])
    return (
        decoder_arguments(config)
        | experts
        | {
            "add_qkv_bias": config["qkv_bias"],
            "moe_layer_freq": sparse_layers(config),
            "moe_shared_expert_intermediate_size": config["shared_expert_intermediate_size"],
            "moe_shared_expert_gate": True,
        }
    )


QWEN2_MOE = Family(
    name="qwen2_moe",
    title="Qwen2-MoE",
    architecture="Qwen2MoeForCausalLM",
    requirements=(
        changed(allow(BLOCK, add_qkv_bias=SWITCH), DERIVED_HEAD)
        + changed(allow(EXPERTS, moe_router_pre_softmax=SWITCH, moe_layer_freq=anything), *SHARED)
    ),
    tensors=lambda d: decoder(d, grouped_attention, _mlp),
    to_config=_config,
    to_arguments=_arguments,
)
