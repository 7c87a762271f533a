"""GLM-4.5: grouped-query attention with optional bias, norms and partial rotation; DeepSeek-V3's mixture."""

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
from megatron_compete.checkpoint.families.requirements import BLOCK, SIGMOID, SWITCH, allow, fraction, positive_or_none

KEYS = read_keys("""
embedding.word_embeddings.weight                             -> model.embed_tokens.weight                           used   [V,H]
decoder.layers.*.self_attention.linear_qkv.layer_norm_weight -> model.layers.*.input_layernorm.weight               whole  [H]
decoder.layers.*.input_layernorm.weight                      -> model.layers.*.input_layernorm.weight               also   [H]
decoder.layers.*.self_attention.linear_qkv.weight            -> model.layers.*.self_attn.q_proj.weight              q      [Q,H]
decoder.layers.*.self_attention.linear_qkv.weight            -> model.layers.*.self_attn.k_proj.weight              k      [K,H]
decoder.layers.*.self_attention.linear_qkv.weight            -> model.layers.*.self_attn.v_proj.weight              v      [K,H]
decoder.layers.*.self_attention.linear_qkv.bias              -> model.layers.*.self_attn.q_proj.bias                q      [Q]    qkv_bias
decoder.layers.*.self_attention.linear_qkv.bias              -> model.layers.*.self_attn.k_proj.bias                k      [K]    qkv_bias
decoder.layers.*.self_attention.linear_qkv.bias              -> model.layers.*.self_attn.v_proj.bias                v      [K]    qkv_bias
decoder.layers.*.self_attention.linear_proj.weight           -> model.layers.*.self_attn.o_proj.weight              whole  [H,Q]
decoder.layers.*.self_attention.q_layernorm.weight           -> model.layers.*.self_attn.q_norm.weight              whole  [D]    qk_norm
decoder.layers.*.self_attention.k_layernorm.weight           -> model.layers.*.self_attn.k_norm.weight              whole  [D]    qk_norm
decoder.layers.*.pre_mlp_layernorm.weight                    -> model.layers.*.post_attention_layernorm.weight      whole  [H]    experts
decoder.layers.*.mlp.linear_fc1.layer_norm_weight            -> model.layers.*.post_attention_layernorm.weight      also   [H]    experts
decoder.layers.*.mlp.linear_fc1.layer_norm_weight            -> model.layers.*.post_attention_layernorm.weight      whole  [H]    dense
decoder.layers.*.pre_mlp_layernorm.weight                    -> model.layers.*.post_attention_layernorm.weight      also   [H]    dense
decoder.layers.*.mlp.linear_fc1.weight                       -> model.layers.*.mlp.gate_proj.weight                 gate   [F,H]  dense
decoder.layers.*.mlp.linear_fc1.weight                       -> model.layers.*.mlp.up_proj.weight                   up     [F,H]  dense
decoder.layers.*.mlp.linear_fc2.weight                       -> model.layers.*.mlp.down_proj.weight                 whole  [H,F]  dense
decoder.layers.*.mlp.router.weight                           -> model.layers.*.mlp.gate.weight                      whole  [E,H]  experts
decoder.layers.*.mlp.router.expert_bias                      -> model.layers.*.mlp.gate.e_score_correction_bias     fp32   [E]    experts expert_bias
-                                                            -> model.layers.*.mlp.gate.e_score_correction_bias     zeros  [E]    experts !expert_bias
decoder.layers.*.mlp.experts.experts.*.linear_fc1.weight     -> model.layers.*.mlp.experts.*.gate_proj.weight       gate   [M,H]  experts
decoder.layers.*.mlp.experts.experts.*.linear_fc1.weight     -> model.layers.*.mlp.experts.*.up_proj.weight         up     [M,H]  experts
decoder.layers.*.mlp.experts.experts.*.linear_fc2.weight     -> model.layers.*.mlp.experts.*.down_proj.weight       whole  [H,M]  experts
decoder.layers.*.mlp.shared_experts.linear_fc1.weight        -> model.layers.*.mlp.shared_experts.gate_proj.weight  gate   [S,H]  experts
decoder.layers.*.mlp.shared_experts.linear_fc1.weight        -> model.layers.*.mlp.shared_experts.up_proj.weight    up     [S,H]  experts
decoder.layers.*.mlp.shared_experts.linear_fc2.weight        -> model.layers.*.mlp.shared_experts.down_proj.weight  whole  [H,S]  experts
mtp.layers.*.enorm.weight                                    -> model.layers.*.enorm.weight                         whole  [H]
mtp.layers.*.hnorm.weight                                    -> model.layers.*.hnorm.weight                         whole  [H]
mtp.layers.*.eh_proj.weight                                  -> model.layers.*.eh_proj.weight                       whole  [H,2H]
mtp.layers.*.final_layernorm.weight                          -> model.layers.*.shared_head.norm.weight              whole  [H]
embedding.word_embeddings.weight                             -> model.layers.*.embed_tokens.weight                  again  [V,H]
output_layer.weight                                          -> model.layers.*.shared_head.head.weight              again  [V,H]  !tied
decoder.final_layernorm.weight                               -> model.norm.weight                                   whole  [H]
output_layer.weight                                          -> lm_head.weight                                      used   [V,H]  !tied
""")


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
    requirements=allow(
        BLOCK, add_qkv_bias=SWITCH, qk_layernorm=SWITCH, rotary_percent=fraction, mtp_num_layers=positive_or_none
    )
    + SIGMOID,
    keys=KEYS,
    to_config=_config,
    to_arguments=_arguments,
    caution=sigmoid_router_caution,
)
