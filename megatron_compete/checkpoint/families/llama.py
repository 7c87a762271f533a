"""Llama: the plain dense decoder, with or without Llama 3's scaled rotary frequencies."""

from collections.abc import Mapping
from typing import Any

from megatron_compete.checkpoint.families.configs import LLAMA3_ROPE, decoder_arguments, decoder_config
from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.family import Family
from megatron_compete.checkpoint.families.key_table import read_keys
from megatron_compete.checkpoint.families.requirements import BLOCK, DENSE, SWITCH, allow

KEYS = read_keys("""
embedding.word_embeddings.weight                             -> model.embed_tokens.weight                       used   [V,H]
decoder.layers.*.self_attention.linear_qkv.layer_norm_weight -> model.layers.*.input_layernorm.weight           whole  [H]
decoder.layers.*.input_layernorm.weight                      -> model.layers.*.input_layernorm.weight           also   [H]
decoder.layers.*.self_attention.linear_qkv.weight            -> model.layers.*.self_attn.q_proj.weight          q      [Q,H]
decoder.layers.*.self_attention.linear_qkv.weight            -> model.layers.*.self_attn.k_proj.weight          k      [K,H]
decoder.layers.*.self_attention.linear_qkv.weight            -> model.layers.*.self_attn.v_proj.weight          v      [K,H]
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
    config: dict[str, Any] = {"head_dim": d.head, "attention_bias": False, "mlp_bias": False, "rope_scaling": None}
    if arguments.get("use_rope_scaling"):
        factor = float(arguments.get("rope_scaling_factor", 8.0))
        config["rope_scaling"] = {"rope_type": "llama3", "factor": factor, **LLAMA3_ROPE}
    return decoder_config(d, arguments) | config


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    arguments = decoder_arguments(config)
    if config["rope_parameters"].get("rope_type") == "llama3":
        arguments |= {"use_rope_scaling": True, "rope_scaling_factor": config["rope_parameters"]["factor"]}
    return arguments


LLAMA = Family(
    name="llama",
    title="Llama",
    architecture="LlamaForCausalLM",
    requirements=DENSE + allow(BLOCK, use_rope_scaling=SWITCH),
    keys=KEYS,
    to_config=_config,
    to_arguments=_arguments,
)
