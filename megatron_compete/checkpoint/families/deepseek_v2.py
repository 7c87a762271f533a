"""DeepSeek-V2 and V2-Lite: multi-latent attention, a softmax over all experts, shared experts, dense layers first.

A token's weights are its probabilities among all experts, times a factor: they do not sum to 1. Groups are ranked by their
best expert, which is Megatron's ranking where a token takes as many groups as experts. (The published DeepSeek-V2 takes 6
experts from 3 groups: Megatron ranks those groups by their two best.)
"""

from collections.abc import Mapping
from typing import Any

from megatron_compete.checkpoint.families.configs import (
    decoder_arguments,
    decoder_config,
    layer_frequency,
    softmax_router_arguments,
)
from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.family import Family
from megatron_compete.checkpoint.families.key_table import read_keys
from megatron_compete.checkpoint.families.latent import LATENT_BLOCK, latent_arguments, latent_config
from megatron_compete.checkpoint.families.requirements import (
    EXPERTS,
    ON,
    SHARED_EXPERTS,
    Requirement,
    allow,
    anything,
    best_of_group,
    changed,
    dense_first,
    positive_or_none,
)

ROUTER = (
    Requirement("moe_router_pre_softmax", False, ON, "its K weights are shares of the softmax over all experts"),
    Requirement(
        "moe_router_group_topk", None, positive_or_none, "it ranks groups by their best expert, Megatron by "
        "--moe-router-topk over --moe-router-group-topk of them: one is exact",
        where=lambda a: best_of_group(a) in (None, 1),
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
decoder.layers.*.mlp.experts.experts.*.linear_fc1.weight            -> model.layers.*.mlp.experts.*.gate_proj.weight       gate   [M,H]    experts
decoder.layers.*.mlp.experts.experts.*.linear_fc1.weight            -> model.layers.*.mlp.experts.*.up_proj.weight         up     [M,H]    experts
decoder.layers.*.mlp.experts.experts.*.linear_fc2.weight            -> model.layers.*.mlp.experts.*.down_proj.weight       whole  [H,M]    experts
decoder.layers.*.mlp.shared_experts.linear_fc1.weight               -> model.layers.*.mlp.shared_experts.gate_proj.weight  gate   [S,H]    experts
decoder.layers.*.mlp.shared_experts.linear_fc1.weight               -> model.layers.*.mlp.shared_experts.up_proj.weight    up     [S,H]    experts
decoder.layers.*.mlp.shared_experts.linear_fc2.weight               -> model.layers.*.mlp.shared_experts.down_proj.weight  whole  [H,S]    experts
decoder.final_layernorm.weight                                      -> model.norm.weight                                   whole  [H]
output_layer.weight                                                 -> lm_head.weight                                      used   [V,H]    !tied
""")


def _config(d: Dimensions, arguments: Mapping[str, Any]) -> dict[str, Any]:
    grouped = bool(arguments.get("moe_router_group_topk"))
    router = {
        "moe_intermediate_size": d.expert_ffn,
        "n_routed_experts": d.experts,
        "num_experts_per_tok": d.topk,
        "n_shared_experts": d.shared_ffn // d.expert_ffn,
        "first_k_dense_replace": len(d.dense_layers),
        "moe_layer_freq": 1,
        "scoring_func": "softmax",
        "norm_topk_prob": False,
        "routed_scaling_factor": float(arguments.get("moe_router_topk_scaling_factor") or 1.0),
        "topk_method": "group_limited_greedy" if grouped else "greedy",
        "n_group": int(arguments["moe_router_num_groups"]) if grouped else None,
        "topk_group": int(arguments["moe_router_group_topk"]) if grouped else None,
    }
    return decoder_config(d, arguments) | router | latent_config(d, arguments)


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    grouped = config["topk_method"] == "group_limited_greedy"
    dense = list(range(config["first_k_dense_replace"]))
    router = softmax_router_arguments(config, config["n_routed_experts"], config["moe_intermediate_size"]) | {
        "moe_shared_expert_intermediate_size": config["n_shared_experts"] * config["moe_intermediate_size"],
        "moe_layer_freq": layer_frequency(dense, config["num_hidden_layers"]),
        "moe_router_pre_softmax": True,  # whatever norm_topk_prob says: transformers does not read it
        "moe_router_topk_scaling_factor": config["routed_scaling_factor"],
        "moe_router_num_groups": config["n_group"] if grouped else None,
        "moe_router_group_topk": config["topk_group"] if grouped else None,
        "moe_router_dtype": "fp32",
    }
    return decoder_arguments(config) | router | latent_arguments(config)


DEEPSEEK_V2 = Family(
    name="deepseek_v2",
    title="DeepSeek-V2",
    architecture="DeepseekV2ForCausalLM",
    requirements=LATENT_BLOCK
    + changed(
        allow(EXPERTS, moe_router_topk_scaling_factor=anything, moe_router_num_groups=positive_or_none),
        Requirement("moe_layer_freq", 1, dense_first, "it has experts in all layers but some first ones"),
        SHARED_EXPERTS,
        *ROUTER,
    ),
    keys=KEYS,
    to_config=_config,
    to_arguments=_arguments,
)
