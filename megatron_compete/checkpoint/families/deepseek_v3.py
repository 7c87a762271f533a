"""DeepSeek-V3: multi-latent attention, sigmoid scores with a correction bias, shared experts, dense layers first.

Positions: Megatron and `rope_interleave` both take the two numbers of a rotated pair from neighbouring places
(upstream: `apply_rotary_pos_emb` with mla_rotary_interleaved), so projections go over unchanged. transformers gives the
norms inside of attention an epsilon of 1e-6 whatever config.json says; others are refused.
"""

from collections.abc import Mapping
from typing import Any

from megatron_compete.checkpoint.families.configs import (
    decoder_arguments,
    decoder_config,
    norm_epsilon,
    sigmoid_router_arguments,
    sigmoid_router_caution,
    sigmoid_router_config,
)
from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.family import Family
from megatron_compete.checkpoint.families.key_table import read_keys
from megatron_compete.checkpoint.families.requirements import (
    BLOCK,
    ON,
    SIGMOID,
    Requirement,
    allow,
    anything,
    changed,
    one_of,
    positive,
)

INNER_EPSILON = 1e-6
YARN = {"original_max_position_embeddings": 4096, "beta_fast": 32.0, "beta_slow": 1.0}
"""Fixed in Megatron's trainer (upstream: defaults of `MLATransformerConfig`)."""

OWN = (
    Requirement("multi_latent_attention", False, ON, "it has multi-latent attention"),
    Requirement("qk_layernorm", False, ON, "it normalises the latents: train with --qk-layernorm"),
)
MLA = (
    Requirement(
        "q_lora_rank", None, positive, "without it Megatron normalises what queries are made from a second time, "
        "which this architecture does not",
    ),
    Requirement(
        "layernorm_epsilon", 1e-5, anything, "it has 1e-6 inside of attention",
        where=lambda a: norm_epsilon(a) == INNER_EPSILON,
    ),
    Requirement(
        "mscale", 1.0, anything, "it stretches scores by mscale_all_dim, and without that by an mscale of 1",
        where=lambda a: not _stretched(a) or _mscale(a)[1] > 0 or _mscale(a)[0] == 1,
    ),
    Requirement(
        "mscale_all_dim", 0.0, anything, "it scales scores under YaRN alone",
        where=lambda a: not _mscale(a)[1] or _yarn(a) or float(a.get("rotary_scaling_factor", 1.0)) <= 1,
    ),
)  # fmt: skip

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
decoder.final_layernorm.weight                                      -> model.norm.weight                                   whole  [H]
output_layer.weight                                                 -> lm_head.weight                                      used   [V,H]    !tied
""")


def _yarn(arguments: Mapping[str, Any]) -> bool:
    return arguments.get("rope_type") in (None, "yarn")


def _stretched(arguments: Mapping[str, Any]) -> bool:
    """Whether positions are: Megatron's YaRN with a factor of 1 is plain RoPE."""
    return _yarn(arguments) and float(arguments.get("rotary_scaling_factor", 1.0)) != 1


def _mscale(arguments: Mapping[str, Any]) -> tuple[float, float]:
    return float(arguments.get("mscale", 1.0)), float(arguments.get("mscale_all_dim", 0.0))


def _config(d: Dimensions, arguments: Mapping[str, Any]) -> dict[str, Any]:
    latent = d.mla
    return (
        decoder_config(d, arguments)
        | sigmoid_router_config(d, arguments)
        | {
            "num_key_value_heads": d.heads,
            "q_lora_rank": latent.query_rank,
            "kv_lora_rank": latent.rank,
            "qk_nope_head_dim": latent.plain_head,
            "qk_rope_head_dim": latent.rotary_head,
            "v_head_dim": latent.value_head,
            "attention_bias": False,
            "rope_interleave": True,
            "rope_scaling": _rope_scaling(arguments),
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "moe_layer_freq": 1,
        }
    )


def _rope_scaling(arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    if not _stretched(arguments):
        return None
    mscale, all_dim = _mscale(arguments)
    factor = float(arguments.get("rotary_scaling_factor", 1.0))
    return {"type": "yarn", "factor": factor, "mscale": mscale, "mscale_all_dim": all_dim, **YARN}


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    rope = config["rope_parameters"]
    yarn = {}
    if rope.get("rope_type") == "yarn":
        yarn = {
            "rope_type": "yarn",
            "rotary_scaling_factor": rope["factor"],
            "mscale": float(rope.get("mscale") or 1.0),
            "mscale_all_dim": float(rope.get("mscale_all_dim") or 0.0),
        }
    return (
        decoder_arguments(config)
        | sigmoid_router_arguments(config)
        | {
            "group_query_attention": False,
            "num_query_groups": 1,
            "kv_channels": config["v_head_dim"],
            "multi_latent_attention": True,
            "qk_layernorm": True,
            "q_lora_rank": config["q_lora_rank"],
            "kv_lora_rank": config["kv_lora_rank"],
            "qk_head_dim": config["qk_nope_head_dim"],
            "qk_pos_emb_head_dim": config["qk_rope_head_dim"],
            "v_head_dim": config["v_head_dim"],
            "rope_type": "rope",
        }
        | yarn
    )


DEEPSEEK_V3 = Family(
    name="deepseek_v3",
    title="DeepSeek-V3",
    architecture="DeepseekV3ForCausalLM",
    requirements=changed(allow(BLOCK, rope_type=one_of(None, "rope", "yarn")), *OWN) + MLA + SIGMOID,
    keys=KEYS,
    to_config=_config,
    to_arguments=_arguments,
    caution=sigmoid_router_caution,
)
