"""Qwen3-MoE: normalised queries and keys, a head size of its own, softmax router with or without renormalisation."""

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
from megatron_compete.checkpoint.families.requirements import BLOCK, EXPERTS, QK_NORM, SWITCH, allow, anything, changed

KEYS = read_keys("""
embedding.word_embeddings.weight                             -> model.embed_tokens.weight                       used   [V,H]
decoder.layers.*.self_attention.linear_qkv.layer_norm_weight -> model.layers.*.input_layernorm.weight           whole  [H]
decoder.layers.*.input_layernorm.weight                      -> model.layers.*.input_layernorm.weight           also   [H]
decoder.layers.*.self_attention.linear_qkv.weight            -> model.layers.*.self_attn.q_proj.weight          q      [Q,H]
decoder.layers.*.self_attention.linear_qkv.weight            -> model.layers.*.self_attn.k_proj.weight          k      [K,H]
decoder.layers.*.self_attention.linear_qkv.weight            -> model.layers.*.self_attn.v_proj.weight          v      [K,H]
decoder.layers.*.self_attention.linear_proj.weight           -> model.layers.*.self_attn.o_proj.weight          whole  [H,Q]
decoder.layers.*.self_attention.q_layernorm.weight           -> model.layers.*.self_attn.q_norm.weight          whole  [D]
decoder.layers.*.self_attention.k_layernorm.weight           -> model.layers.*.self_attn.k_norm.weight          whole  [D]
decoder.layers.*.pre_mlp_layernorm.weight                    -> model.layers.*.post_attention_layernorm.weight  whole  [H]    experts
decoder.layers.*.mlp.linear_fc1.layer_norm_weight            -> model.layers.*.post_attention_layernorm.weight  also   [H]    experts
decoder.layers.*.mlp.linear_fc1.layer_norm_weight            -> model.layers.*.post_attention_layernorm.weight  whole  [H]    dense
decoder.layers.*.pre_mlp_layernorm.weight                    -> model.layers.*.post_attention_layernorm.weight  also   [H]    dense
decoder.layers.*.mlp.linear_fc1.weight                       -> model.layers.*.mlp.gate_proj.weight             gate   [F,H]  dense
decoder.layers.*.mlp.linear_fc1.weight                       -> model.layers.*.mlp.up_proj.weight               up     [F,H]  dense
decoder.layers.*.mlp.linear_fc2.weight                       -> model.layers.*.mlp.down_proj.weight             whole  [H,F]  dense
decoder.layers.*.mlp.router.weight                           -> model.layers.*.mlp.gate.weight                  whole  [E,H]  experts
decoder.layers.*.mlp.experts.experts.*.linear_fc1.weight     -> model.layers.*.mlp.experts.*.gate_proj.weight   gate   [M,H]  experts
decoder.layers.*.mlp.experts.experts.*.linear_fc1.weight     -> model.layers.*.mlp.experts.*.up_proj.weight     up     [M,H]  experts
decoder.layers.*.mlp.experts.experts.*.linear_fc2.weight     -> model.layers.*.mlp.experts.*.down_proj.weight   whole  [H,M]  experts
decoder.final_layernorm.weight                               -> model.norm.weight                               whole  [H]
output_layer.weight                                          -> lm_head.weight                                  used   [V,H]  !tied
""")


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
    keys=KEYS,
    to_config=_config,
    to_arguments=_arguments,
)
