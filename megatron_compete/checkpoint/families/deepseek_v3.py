"""DeepSeek-V3, and Kimi-K2 in other sizes: multi-latent attention, sigmoid scores with a correction bias, shared experts,
dense layers first.
"""

from collections.abc import Mapping
from typing import Any

from megatron_compete.checkpoint.families.configs import (
    decoder_arguments,
    decoder_config,
    sigmoid_router_arguments,
    sigmoid_router_caution,
    sigmoid_router_config,
)
from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.family import Family
from megatron_compete.checkpoint.families.key_table import read_keys
from megatron_compete.checkpoint.families.latent import LATENT_BLOCK, latent_arguments, latent_config
from megatron_compete.checkpoint.families.requirements import SIGMOID, allow, positive_or_none

KEYS = read_keys("""
embedding.word_embeddings.weight                                    -> model.embed_tokens.weight                           used   [V,H]
decoder.layers.*.input_layernorm.weight                             -> model.layers.*.input_layernorm.weight               whole  [H]
decoder.layers.*.self_attention.linear_q_down_proj.weight           -> model.layers.*.self_attn.q_a_proj.weight            whole  [QL,H]
decoder.layers.*.self_attention.q_layernorm.weight                  -> model.layers.*.self_attn.q_a_layernorm.weight       whole  [QL]
decoder.layers.*.self_attention.linear_q_up_proj.layer_norm_weight  -> model.layers.*.self_attn.q_a_layernorm.weight       also   [QL]
decoder.layers.*.self_attention.linear_q_up_proj.weight             -> model.layers.*.self_attn.q_b_proj.weight            whole  [QR,QL]
decoder.layers.*.self_attention.linear_kv_down_proj.weight          -> model.layers.*.self_attn.kv_a_proj_with_mqa.weight  whole  [KP,H]
decoder.layers.*.self_attention.kv_layernorm.weight                 -> model.layers.*.self_attn.kv_a_layernorm.weight      whole  [KL]
decoder.layers.*.self_attention.linear_kv_up_proj.layer_norm_weight -> model.layers.*.self_attn.kv_a_layernorm.weight      also   [KL]
decoder.layers.*.self_attention.linear_kv_up_proj.weight            -> model.layers.*.self_attn.kv_b_proj.weight           whole  [KV,KL]
decoder.layers.*.self_attention.linear_proj.weight                  -> model.layers.*.self_attn.o_proj.weight              whole  [H,O]
decoder.layers.*.pre_mlp_layernorm.weight                           -> model.layers.*.post_attention_layernorm.weight      whole  [H]      experts
decoder.layers.*.mlp.linear_fc1.layer_norm_weight                   -> model.layers.*.post_attention_layernorm.weight      also   [H]      experts
decoder.layers.*.mlp.linear_fc1.layer_norm_weight                   -> model.layers.*.post_attention_layernorm.weight      whole  [H]      dense
decoder.layers.*.pre_mlp_layernorm.weight                           -> model.layers.*.post_attention_layernorm.weight      also   [H]      dense
decoder.layers.*.mlp.linear_fc1.weight                              -> model.layers.*.mlp.gate_proj.weight                 gate   [F,H]    dense
decoder.layers.*.mlp.linear_fc1.weight                              -> model.layers.*.mlp.up_proj.weight                   up     [F,H]    dense
decoder.layers.*.mlp.linear_fc2.weight                              -> model.layers.*.mlp.down_proj.weight                 whole  [H,F]    dense
decoder.layers.*.mlp.router.weight                                  -> model.layers.*.mlp.gate.weight                      whole  [E,H]    experts
decoder.layers.*.mlp.router.expert_bias                             -> model.layers.*.mlp.gate.e_score_correction_bias     fp32   [E]      experts expert_bias
-                                                                   -> model.layers.*.mlp.gate.e_score_correction_bias     zeros  [E]      experts !expert_bias
decoder.layers.*.mlp.experts.experts.*.linear_fc1.weight            -> model.layers.*.mlp.experts.*.gate_proj.weight       gate   [M,H]    experts
decoder.layers.*.mlp.experts.experts.*.linear_fc1.weight            -> model.layers.*.mlp.experts.*.up_proj.weight         up     [M,H]    experts
decoder.layers.*.mlp.experts.experts.*.linear_fc2.weight            -> model.layers.*.mlp.experts.*.down_proj.weight       whole  [H,M]    experts
decoder.layers.*.mlp.shared_experts.linear_fc1.weight               -> model.layers.*.mlp.shared_experts.gate_proj.weight  gate   [S,H]    experts
decoder.layers.*.mlp.shared_experts.linear_fc1.weight               -> model.layers.*.mlp.shared_experts.up_proj.weight    up     [S,H]    experts
decoder.layers.*.mlp.shared_experts.linear_fc2.weight               -> model.layers.*.mlp.shared_experts.down_proj.weight  whole  [H,S]    experts
mtp.layers.*.enorm.weight                                           -> model.layers.*.enorm.weight                         whole  [H]
mtp.layers.*.hnorm.weight                                           -> model.layers.*.hnorm.weight                         whole  [H]
mtp.layers.*.eh_proj.weight                                         -> model.layers.*.eh_proj.weight                       whole  [H,2H]
mtp.layers.*.final_layernorm.weight                                 -> model.layers.*.shared_head.norm.weight              whole  [H]
embedding.word_embeddings.weight                                    -> model.layers.*.embed_tokens.weight                  again  [V,H]
output_layer.weight                                                 -> model.layers.*.shared_head.head.weight              again  [V,H]    !tied
decoder.final_layernorm.weight                                      -> model.norm.weight                                   whole  [H]
output_layer.weight                                                 -> lm_head.weight                                      used   [V,H]    !tied
""")


def _config(d: Dimensions, arguments: Mapping[str, Any]) -> dict[str, Any]:
    own = {"rope_interleave": True, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1}
    return decoder_config(d, arguments) | sigmoid_router_config(d, arguments) | latent_config(d, arguments) | own


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    return decoder_arguments(config) | sigmoid_router_arguments(config) | latent_arguments(config)


DEEPSEEK_V3 = Family(
    name="deepseek_v3",
    title="DeepSeek-V3",
    architecture="DeepseekV3ForCausalLM",
    requirements=allow(LATENT_BLOCK, mtp_num_layers=positive_or_none) + SIGMOID,
    keys=KEYS,
    to_config=_config,
    to_arguments=_arguments,
    caution=sigmoid_router_caution,
    aliases=("kimi_k2",),
)
