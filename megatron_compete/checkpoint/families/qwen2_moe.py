"""Qwen2-MoE: a gated shared expert beside the routed ones, optional bias on queries, keys and values."""

from collections.abc import Mapping
from typing import Any

from megatron_compete.checkpoint.families.configs import (
    decoder_arguments,
    decoder_config,
    softmax_router_arguments,
    sparse_config,
    sparse_layers,
)
from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.family import Family
from megatron_compete.checkpoint.families.key_table import read_keys
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

KEYS = read_keys("""
embedding.word_embeddings.weight                             -> model.embed_tokens.weight                          used   [V,H]
decoder.layers.*.self_attention.linear_qkv.layer_norm_weight -> model.layers.*.input_layernorm.weight              whole  [H]
decoder.layers.*.input_layernorm.weight                      -> model.layers.*.input_layernorm.weight              also   [H]
decoder.layers.*.self_attention.linear_qkv.weight            -> model.layers.*.self_attn.q_proj.weight             q      [Q,H]
decoder.layers.*.self_attention.linear_qkv.weight            -> model.layers.*.self_attn.k_proj.weight             k      [K,H]
decoder.layers.*.self_attention.linear_qkv.weight            -> model.layers.*.self_attn.v_proj.weight             v      [K,H]
decoder.layers.*.self_attention.linear_qkv.bias              -> model.layers.*.self_attn.q_proj.bias               q      [Q]    qkv_bias
decoder.layers.*.self_attention.linear_qkv.bias              -> model.layers.*.self_attn.k_proj.bias               k      [K]    qkv_bias
decoder.layers.*.self_attention.linear_qkv.bias              -> model.layers.*.self_attn.v_proj.bias               v      [K]    qkv_bias
decoder.layers.*.self_attention.linear_proj.weight           -> model.layers.*.self_attn.o_proj.weight             whole  [H,Q]
decoder.layers.*.pre_mlp_layernorm.weight                    -> model.layers.*.post_attention_layernorm.weight     whole  [H]    experts
decoder.layers.*.mlp.linear_fc1.layer_norm_weight            -> model.layers.*.post_attention_layernorm.weight     also   [H]    experts
decoder.layers.*.mlp.linear_fc1.layer_norm_weight            -> model.layers.*.post_attention_layernorm.weight     whole  [H]    dense
decoder.layers.*.pre_mlp_layernorm.weight                    -> model.layers.*.post_attention_layernorm.weight     also   [H]    dense
decoder.layers.*.mlp.linear_fc1.weight                       -> model.layers.*.mlp.gate_proj.weight                gate   [F,H]  dense
decoder.layers.*.mlp.linear_fc1.weight                       -> model.layers.*.mlp.up_proj.weight                  up     [F,H]  dense
decoder.layers.*.mlp.linear_fc2.weight                       -> model.layers.*.mlp.down_proj.weight                whole  [H,F]  dense
decoder.layers.*.mlp.router.weight                           -> model.layers.*.mlp.gate.weight                     whole  [E,H]  experts
decoder.layers.*.mlp.experts.experts.*.linear_fc1.weight     -> model.layers.*.mlp.experts.*.gate_proj.weight      gate   [M,H]  experts
decoder.layers.*.mlp.experts.experts.*.linear_fc1.weight     -> model.layers.*.mlp.experts.*.up_proj.weight        up     [M,H]  experts
decoder.layers.*.mlp.experts.experts.*.linear_fc2.weight     -> model.layers.*.mlp.experts.*.down_proj.weight      whole  [H,M]  experts
decoder.layers.*.mlp.shared_experts.linear_fc1.weight        -> model.layers.*.mlp.shared_expert.gate_proj.weight  gate   [S,H]  experts
decoder.layers.*.mlp.shared_experts.linear_fc1.weight        -> model.layers.*.mlp.shared_expert.up_proj.weight    up     [S,H]  experts
decoder.layers.*.mlp.shared_experts.linear_fc2.weight        -> model.layers.*.mlp.shared_expert.down_proj.weight  whole  [H,S]  experts
decoder.layers.*.mlp.shared_experts.gate_weight              -> model.layers.*.mlp.shared_expert_gate.weight       whole  [1,H]  experts
decoder.final_layernorm.weight                               -> model.norm.weight                                  whole  [H]
output_layer.weight                                          -> lm_head.weight                                     used   [V,H]  !tied
""")


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
    keys=KEYS,
    to_config=_config,
    to_arguments=_arguments,
)
