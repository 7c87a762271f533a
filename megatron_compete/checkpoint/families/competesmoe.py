"""CompeteSMoE's own architecture: what no stock one expresses, with code that goes along (`checkpoint/custom_code`).

Among others the authors' 154M recipe: LayerNorm, rotation of half a head, ReLU experts of two matrices. It expresses
any of these together with biases and norms of attention, shared experts, and every router of Megatron's top-K kind.
"""

from collections.abc import Mapping
from typing import Any

from megatron_compete.checkpoint.families.configs import (
    INITIALIZER_RANGE,
    ROTARY_BASE,
    layer_frequency,
    norm_epsilon,
    whole,
)
from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.family import Family
from megatron_compete.checkpoint.families.key_table import read_keys
from megatron_compete.checkpoint.families.requirements import (
    BLOCK,
    EXPERTS,
    SWITCH,
    Requirement,
    allow,
    anything,
    changed,
    fraction,
    one_of,
    positive_or_none,
)
from megatron_compete.routing.rule import RouterRule

BIAS = Requirement(
    "moe_router_enable_expert_bias", False, SWITCH, "it has no bias on a softmax",
    where=lambda a: not a.get("moe_router_enable_expert_bias") or a.get("moe_router_score_function", "softmax") != "softmax",
)  # fmt: skip

KEYS = read_keys("""
embedding.word_embeddings.weight                             -> model.embed_tokens.weight                          used   [V,H]
decoder.layers.*.self_attention.linear_qkv.layer_norm_weight -> model.layers.*.input_layernorm.weight              whole  [H]
decoder.layers.*.input_layernorm.weight                      -> model.layers.*.input_layernorm.weight              also   [H]
decoder.layers.*.self_attention.linear_qkv.layer_norm_bias   -> model.layers.*.input_layernorm.bias                whole  [H]    layer_norm
decoder.layers.*.input_layernorm.bias                        -> model.layers.*.input_layernorm.bias                also   [H]    layer_norm
decoder.layers.*.self_attention.linear_qkv.weight            -> model.layers.*.self_attn.q_proj.weight             q      [Q,H]
decoder.layers.*.self_attention.linear_qkv.weight            -> model.layers.*.self_attn.k_proj.weight             k      [K,H]
decoder.layers.*.self_attention.linear_qkv.weight            -> model.layers.*.self_attn.v_proj.weight             v      [K,H]
decoder.layers.*.self_attention.linear_qkv.bias              -> model.layers.*.self_attn.q_proj.bias               q      [Q]    qkv_bias
decoder.layers.*.self_attention.linear_qkv.bias              -> model.layers.*.self_attn.k_proj.bias               k      [K]    qkv_bias
decoder.layers.*.self_attention.linear_qkv.bias              -> model.layers.*.self_attn.v_proj.bias               v      [K]    qkv_bias
decoder.layers.*.self_attention.linear_proj.weight           -> model.layers.*.self_attn.o_proj.weight             whole  [H,Q]
decoder.layers.*.self_attention.q_layernorm.weight           -> model.layers.*.self_attn.q_norm.weight             whole  [D]    qk_norm
decoder.layers.*.self_attention.q_layernorm.bias             -> model.layers.*.self_attn.q_norm.bias               whole  [D]    qk_norm layer_norm
decoder.layers.*.self_attention.k_layernorm.weight           -> model.layers.*.self_attn.k_norm.weight             whole  [D]    qk_norm
decoder.layers.*.self_attention.k_layernorm.bias             -> model.layers.*.self_attn.k_norm.bias               whole  [D]    qk_norm layer_norm
decoder.layers.*.pre_mlp_layernorm.weight                    -> model.layers.*.post_attention_layernorm.weight     whole  [H]    experts
decoder.layers.*.mlp.linear_fc1.layer_norm_weight            -> model.layers.*.post_attention_layernorm.weight     also   [H]    experts
decoder.layers.*.pre_mlp_layernorm.bias                      -> model.layers.*.post_attention_layernorm.bias       whole  [H]    experts layer_norm
decoder.layers.*.mlp.linear_fc1.layer_norm_bias              -> model.layers.*.post_attention_layernorm.bias       also   [H]    experts layer_norm
decoder.layers.*.mlp.linear_fc1.layer_norm_weight            -> model.layers.*.post_attention_layernorm.weight     whole  [H]    dense
decoder.layers.*.pre_mlp_layernorm.weight                    -> model.layers.*.post_attention_layernorm.weight     also   [H]    dense
decoder.layers.*.mlp.linear_fc1.layer_norm_bias              -> model.layers.*.post_attention_layernorm.bias       whole  [H]    dense layer_norm
decoder.layers.*.pre_mlp_layernorm.bias                      -> model.layers.*.post_attention_layernorm.bias       also   [H]    dense layer_norm
decoder.layers.*.mlp.linear_fc1.weight                       -> model.layers.*.mlp.gate_proj.weight                gate   [F,H]  dense gated
decoder.layers.*.mlp.linear_fc1.weight                       -> model.layers.*.mlp.up_proj.weight                  up     [F,H]  dense gated
decoder.layers.*.mlp.linear_fc1.weight                       -> model.layers.*.mlp.up_proj.weight                  whole  [F,H]  dense !gated
decoder.layers.*.mlp.linear_fc2.weight                       -> model.layers.*.mlp.down_proj.weight                whole  [H,F]  dense
decoder.layers.*.mlp.router.weight                           -> model.layers.*.mlp.gate.weight                     whole  [E,H]  experts
decoder.layers.*.mlp.router.expert_bias                      -> model.layers.*.mlp.gate.e_score_correction_bias    fp32   [E]    experts expert_bias
decoder.layers.*.mlp.fc1_latent_proj.weight                  -> model.layers.*.mlp.fc1_latent_proj.weight          whole  [L,H]  experts latent
decoder.layers.*.mlp.fc2_latent_proj.weight                  -> model.layers.*.mlp.fc2_latent_proj.weight          whole  [H,L]  experts latent
decoder.layers.*.mlp.experts.experts.*.linear_fc1.weight     -> model.layers.*.mlp.experts.*.gate_proj.weight      gate   [M,I]  experts gated
decoder.layers.*.mlp.experts.experts.*.linear_fc1.weight     -> model.layers.*.mlp.experts.*.up_proj.weight        up     [M,I]  experts gated
decoder.layers.*.mlp.experts.experts.*.linear_fc1.weight     -> model.layers.*.mlp.experts.*.up_proj.weight        whole  [M,I]  experts !gated
decoder.layers.*.mlp.experts.experts.*.linear_fc2.weight     -> model.layers.*.mlp.experts.*.down_proj.weight      whole  [I,M]  experts
decoder.layers.*.mlp.shared_experts.linear_fc1.weight        -> model.layers.*.mlp.shared_expert.gate_proj.weight  gate   [S,H]  experts shared gated
decoder.layers.*.mlp.shared_experts.linear_fc1.weight        -> model.layers.*.mlp.shared_expert.up_proj.weight    up     [S,H]  experts shared gated
decoder.layers.*.mlp.shared_experts.linear_fc1.weight        -> model.layers.*.mlp.shared_expert.up_proj.weight    whole  [S,H]  experts shared !gated
decoder.layers.*.mlp.shared_experts.linear_fc2.weight        -> model.layers.*.mlp.shared_expert.down_proj.weight  whole  [H,S]  experts shared
decoder.layers.*.mlp.shared_experts.gate_weight              -> model.layers.*.mlp.shared_expert_gate.weight       whole  [1,H]  experts shared shared_gate
decoder.final_layernorm.weight                               -> model.norm.weight                                  whole  [H]
decoder.final_layernorm.bias                                 -> model.norm.bias                                    whole  [H]    layer_norm
output_layer.weight                                          -> lm_head.weight                                     used   [V,H]  !tied
""")


def _activation(arguments: Mapping[str, Any]) -> str:
    names = {"swiglu": "silu", "relu": "relu", "squared_relu": "relu2"}
    return next((name for argument, name in names.items() if arguments.get(argument)), "gelu")


def _config(d: Dimensions, arguments: Mapping[str, Any]) -> dict[str, Any]:
    config = {
        "vocab_size": d.vocab,
        "hidden_size": d.hidden,
        "num_hidden_layers": d.layers,
        "num_attention_heads": d.heads,
        "num_key_value_heads": d.groups,
        "head_dim": d.head,
        "max_position_embeddings": int(arguments.get("max_position_embeddings") or arguments["seq_length"]),
        "rope_theta": float(arguments.get("rotary_base", ROTARY_BASE)),
        "partial_rotary_factor": float(arguments.get("rotary_percent", 1.0)),
        "qkv_bias": d.qkv_bias,
        "qk_norm": d.qk_norm,
        "norm": "layernorm" if d.layer_norm else "rmsnorm",
        "norm_eps": norm_epsilon(arguments),
        "hidden_act": _activation(arguments),
        "gated_mlp": d.gated,
        "intermediate_size": d.ffn,
        "attention_dropout": float(arguments.get("attention_dropout", 0.0)),
        "initializer_range": float(arguments.get("init_method_std", INITIALIZER_RANGE)),
        "tie_word_embeddings": d.tied,
        "use_cache": True,
        "num_experts": d.experts,
    }
    return config | (_router_config(d, arguments) if d.experts else {})


def _router_config(d: Dimensions, arguments: Mapping[str, Any]) -> dict[str, Any]:
    rule = RouterRule.of(arguments)
    return {
        "dense_layers": d.dense_layers,
        "num_experts_per_tok": d.topk,
        "moe_intermediate_size": d.expert_ffn,
        "shared_expert_intermediate_size": d.shared_ffn,
        "shared_expert_gate": bool(d.shared_ffn and d.shared_gate),
        "score_function": arguments.get("moe_router_score_function", "softmax"),
        "norm_topk_prob": rule.normalized,
        "routed_scaling_factor": rule.scaling_factor,
        "score_correction_bias": d.expert_bias,
        "num_expert_groups": rule.num_groups,
        "num_chosen_groups": rule.group_top_k,
        "experts_per_group_score": rule.experts_per_group_score,
        "rank_by_logits": rule.by_logits and rule.num_groups > 1,  # without groups both rank alike
        "moe_latent_size": int(arguments.get("moe_latent_size") or 0),
        "router_in_fp32": arguments.get("moe_router_dtype") in ("fp32", "fp64"),
    }


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    grouped = config["num_expert_groups"] > 1
    softmax = config["score_function"] == "softmax"
    activation = config["hidden_act"]
    return {
        "num_layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
        "num_attention_heads": config["num_attention_heads"],
        "group_query_attention": True,
        "num_query_groups": config["num_key_value_heads"],
        "kv_channels": config["head_dim"],
        "ffn_hidden_size": config["intermediate_size"],
        "max_position_embeddings": config["max_position_embeddings"],
        "seq_length": config["max_position_embeddings"],
        "normalization": "LayerNorm" if config["norm"] == "layernorm" else "RMSNorm",
        "layernorm_epsilon": config["norm_eps"],
        "add_bias_linear": False,
        "add_qkv_bias": config["qkv_bias"],
        "qk_layernorm": config["qk_norm"],
        "swiglu": activation == "silu" and config["gated_mlp"],
        "relu": activation == "relu",
        "squared_relu": activation == "relu2",
        "position_embedding_type": "rope",
        "rotary_base": whole(config["rope_theta"]),
        "rotary_percent": float(config["partial_rotary_factor"]),
        "untie_embeddings_and_output_weights": not config["tie_word_embeddings"],
        "init_method_std": config["initializer_range"],
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "num_experts": config["num_experts"] or None,
        "moe_layer_freq": layer_frequency(config["dense_layers"], config["num_hidden_layers"]),
        "moe_ffn_hidden_size": config["moe_intermediate_size"],
        "moe_shared_expert_intermediate_size": config["shared_expert_intermediate_size"] or None,
        "moe_shared_expert_gate": config["shared_expert_gate"],
        "moe_router_topk": config["num_experts_per_tok"],
        "moe_router_score_function": config["score_function"],
        "moe_router_pre_softmax": softmax and not config["norm_topk_prob"],
        "moe_router_topk_scaling_factor": config["routed_scaling_factor"],
        "moe_router_enable_expert_bias": config["score_correction_bias"],
        "moe_router_num_groups": config["num_expert_groups"] if grouped else None,
        "moe_router_group_topk": config["num_chosen_groups"] if grouped else None,
        "moe_latent_size": config["moe_latent_size"] or None,
        "moe_router_dtype": "fp32" if config["router_in_fp32"] else None,
    }


COMPETESMOE = Family(
    name="competesmoe",
    title="CompeteSMoE's own architecture",
    architecture="CompeteSMoEForCausalLM",
    requirements=(
        allow(
            BLOCK,
            normalization=one_of("RMSNorm", "LayerNorm"),
            add_qkv_bias=SWITCH,
            qk_layernorm=SWITCH,
            rotary_percent=fraction,
            relu=SWITCH,
            squared_relu=SWITCH,
            swiglu=SWITCH,
        )
        + changed(
            allow(
                EXPERTS,
                num_experts=positive_or_none,
                moe_layer_freq=anything,
                moe_shared_expert_intermediate_size=positive_or_none,
                moe_shared_expert_gate=SWITCH,
                moe_latent_size=positive_or_none,
                moe_router_score_function=one_of("softmax", "sigmoid", "sqrtsoftplus"),
                moe_router_pre_softmax=SWITCH,
                moe_router_topk_scaling_factor=anything,
                moe_router_num_groups=positive_or_none,
                moe_router_group_topk=positive_or_none,
            ),
            BIAS,
        )
    ),
    keys=KEYS,
    to_config=_config,
    to_arguments=_arguments,
    code=("configuration_competesmoe.py", "modeling_competesmoe.py"),
)
