"""Mixtral: every layer a mixture of SwiGLU experts behind a softmax over the K best.

Names are those of the published checkpoints (`block_sparse_moe.experts.E.w1` gate, `w3` up, `w2` down).
"""

from collections.abc import Mapping
from typing import Any

from megatron_compete.checkpoint.families.configs import decoder_arguments, decoder_config, softmax_router_arguments
from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.family import Family
from megatron_compete.checkpoint.families.key_table import read_keys
from megatron_compete.checkpoint.families.requirements import BLOCK, EXPERTS

KEYS = read_keys("""
embedding.word_embeddings.weight                             -> model.embed_tokens.weight                            used   [V,H]
decoder.layers.*.self_attention.linear_qkv.layer_norm_weight -> model.layers.*.input_layernorm.weight                whole  [H]
decoder.layers.*.input_layernorm.weight                      -> model.layers.*.input_layernorm.weight                also   [H]
decoder.layers.*.self_attention.linear_qkv.weight            -> model.layers.*.self_attn.q_proj.weight               q      [Q,H]
decoder.layers.*.self_attention.linear_qkv.weight            -> model.layers.*.self_attn.k_proj.weight               k      [K,H]
decoder.layers.*.self_attention.linear_qkv.weight            -> model.layers.*.self_attn.v_proj.weight               v      [K,H]
decoder.layers.*.self_attention.linear_proj.weight           -> model.layers.*.self_attn.o_proj.weight               whole  [H,Q]
decoder.layers.*.pre_mlp_layernorm.weight                    -> model.layers.*.post_attention_layernorm.weight       whole  [H]
decoder.layers.*.mlp.linear_fc1.layer_norm_weight            -> model.layers.*.post_attention_layernorm.weight       also   [H]
decoder.layers.*.mlp.router.weight                           -> model.layers.*.block_sparse_moe.gate.weight          whole  [E,H]
decoder.layers.*.mlp.experts.experts.*.linear_fc1.weight     -> model.layers.*.block_sparse_moe.experts.*.w1.weight  gate   [M,H]
decoder.layers.*.mlp.experts.experts.*.linear_fc1.weight     -> model.layers.*.block_sparse_moe.experts.*.w3.weight  up     [M,H]
decoder.layers.*.mlp.experts.experts.*.linear_fc2.weight     -> model.layers.*.block_sparse_moe.experts.*.w2.weight  whole  [H,M]
decoder.final_layernorm.weight                               -> model.norm.weight                                    whole  [H]
output_layer.weight                                          -> lm_head.weight                                       used   [V,H]  !tied
""")


def _config(d: Dimensions, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return decoder_config(d, arguments) | {
        "head_dim": d.head,
        "intermediate_size": d.expert_ffn,
        "num_local_experts": d.experts,
        "num_experts_per_tok": d.topk,
        "sliding_window": None,
        "output_router_logits": False,
    }


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    experts = softmax_router_arguments(config, config["num_local_experts"], config["intermediate_size"])
    return decoder_arguments(config) | experts


MIXTRAL = Family(
    name="mixtral",
    title="Mixtral",
    architecture="MixtralForCausalLM",
    requirements=BLOCK + EXPERTS,
    keys=KEYS,
    to_config=_config,
    to_arguments=_arguments,
)
