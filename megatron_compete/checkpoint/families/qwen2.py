"""Qwen2: a dense decoder with a bias on queries, keys and values."""

from collections.abc import Mapping
from typing import Any

from megatron_compete.checkpoint.families.configs import decoder_arguments, decoder_config
from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.family import Family
from megatron_compete.checkpoint.families.key_table import read_keys
from megatron_compete.checkpoint.families.requirements import BLOCK, DENSE, DERIVED_HEAD, ON, Requirement, changed

BIAS = Requirement("add_qkv_bias", False, ON, "its queries, keys and values have a bias: train with --add-qkv-bias")

KEYS = read_keys("""
embedding.word_embeddings.weight                             -> model.embed_tokens.weight                       used   [V,H]
decoder.layers.*.self_attention.linear_qkv.layer_norm_weight -> model.layers.*.input_layernorm.weight           whole  [H]
decoder.layers.*.input_layernorm.weight                      -> model.layers.*.input_layernorm.weight           also   [H]
decoder.layers.*.self_attention.linear_qkv.weight            -> model.layers.*.self_attn.q_proj.weight          q      [Q,H]
decoder.layers.*.self_attention.linear_qkv.weight            -> model.layers.*.self_attn.k_proj.weight          k      [K,H]
decoder.layers.*.self_attention.linear_qkv.weight            -> model.layers.*.self_attn.v_proj.weight          v      [K,H]
decoder.layers.*.self_attention.linear_qkv.bias              -> model.layers.*.self_attn.q_proj.bias            q      [Q]
decoder.layers.*.self_attention.linear_qkv.bias              -> model.layers.*.self_attn.k_proj.bias            k      [K]
decoder.layers.*.self_attention.linear_qkv.bias              -> model.layers.*.self_attn.v_proj.bias            v      [K]
decoder.layers.*.self_attention.linear_proj.weight           -> model.layers.*.self_attn.o_proj.weight          whole  [H,Q]
decoder.layers.*.mlp.linear_fc1.layer_norm_weight            -> model.layers.*.post_attention_layernorm.weight  whole  [H]
decoder.layers.*.pre_mlp_layernorm.weight                    -> model.layers.*.post_attention_layernorm.weight  also   [H]
decoder.layers.*.mlp.linear_fc1.weight                       -> model.layers.*.mlp.gate_proj.weight             gate   [F,H]
decoder.layers.*.mlp.linear_fc1.weight                       -> model.layers.*.mlp.up_proj.weight               up     [F,H]
decoder.layers.*.mlp.linear_fc2.weight                       -> model.layers.*.mlp.down_proj.weight             whole  [H,F]
decoder.final_layernorm.weight                               -> model.norm.weight                               whole  [H]
output_layer.weight                                          -> lm_head.weight                                  used   [V,H]  !tied
""")


def _config(d: Dimensions, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return decoder_config(d, arguments) | {"use_sliding_window": False, "sliding_window": None}


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    return decoder_arguments(config) | {"add_qkv_bias": True}


QWEN2 = Family(
    name="qwen2",
    title="Qwen2",
    architecture="Qwen2ForCausalLM",
    requirements=DENSE + changed(BLOCK, BIAS, DERIVED_HEAD),
    keys=KEYS,
    to_config=_config,
    to_arguments=_arguments,
)
