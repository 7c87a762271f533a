"""Nemotron-H: a hybrid model whose layers are Mamba-2, attention without positions, an MLP or a mixture, one of them each.

The mixture is DeepSeek-V3's with experts of two matrices (squared ReLU), in a latent space or not. Names are the hub's,
`backbone...`. transformers bounds Mamba's steps by `time_step_min` from below, Megatron does not: it
has to be next to nothing.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from megatron_compete.checkpoint.families.configs import INITIALIZER_RANGE, norm_epsilon
from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.family import Family
from megatron_compete.checkpoint.families.key_table import read_keys
from megatron_compete.checkpoint.families.requirements import (
    BLOCK,
    OFF,
    ON,
    SIGMOID,
    SWITCH,
    Arguments,
    Requirement,
    allow,
    anything,
    changed,
    one_of,
    positive,
    positive_or_none,
)

UNBOUNDED = 1e-30
"""A bound that no step is below; transformers takes the logarithm of it."""
LAYERS = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
"""transformers' names of layers by Megatron's symbols."""


def _has_experts(arguments: Arguments) -> bool:
    return "E" in str(arguments.get("hybrid_layer_pattern"))


def _known_layers(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and set(value) <= {*LAYERS, "|"}


def _where_experts_are(table: tuple[Requirement, ...]) -> tuple[Requirement, ...]:
    """The table for models with a mixture; it means nothing to others."""

    def of(one: Requirement) -> Requirement:
        def fits(arguments: Arguments) -> bool:
            return not _has_experts(arguments) or not one.refuses(arguments)

        return replace(one, allowed=anything, where=fits)

    return tuple(of(one) for one in table)


KEYS = read_keys("""
embedding.word_embeddings.weight                             -> backbone.embeddings.weight                               used    [V,H]
decoder.layers.*.mixer.in_proj.layer_norm_weight             -> backbone.layers.*.norm.weight                            whole   [H]        mamba
decoder.layers.*.mixer.in_proj.weight                        -> backbone.layers.*.mixer.in_proj.weight                   zxbcdt  [SP,H]     mamba
decoder.layers.*.mixer.conv1d.weight                         -> backbone.layers.*.mixer.conv1d.weight                    xbc     [SC,1,SW]  mamba
decoder.layers.*.mixer.conv1d.bias                           -> backbone.layers.*.mixer.conv1d.bias                      xbc     [SC]       mamba
decoder.layers.*.mixer.dt_bias                               -> backbone.layers.*.mixer.dt_bias                          whole   [SN]       mamba
decoder.layers.*.mixer.A_log                                 -> backbone.layers.*.mixer.A_log                            whole   [SN]       mamba
decoder.layers.*.mixer.D                                     -> backbone.layers.*.mixer.D                                whole   [SN]       mamba
decoder.layers.*.mixer.norm.weight                           -> backbone.layers.*.mixer.norm.weight                      whole   [SI]       mamba
decoder.layers.*.mixer.out_proj.weight                       -> backbone.layers.*.mixer.out_proj.weight                  whole   [H,SI]     mamba
decoder.layers.*.self_attention.linear_qkv.layer_norm_weight -> backbone.layers.*.norm.weight                            whole   [H]        attention
decoder.layers.*.self_attention.linear_qkv.weight            -> backbone.layers.*.mixer.q_proj.weight                    q       [Q,H]      attention
decoder.layers.*.self_attention.linear_qkv.weight            -> backbone.layers.*.mixer.k_proj.weight                    k       [K,H]      attention
decoder.layers.*.self_attention.linear_qkv.weight            -> backbone.layers.*.mixer.v_proj.weight                    v       [K,H]      attention
decoder.layers.*.self_attention.linear_proj.weight           -> backbone.layers.*.mixer.o_proj.weight                    whole   [H,Q]      attention
decoder.layers.*.mlp.linear_fc1.layer_norm_weight            -> backbone.layers.*.norm.weight                            whole   [H]        mlp
decoder.layers.*.mlp.linear_fc1.weight                       -> backbone.layers.*.mixer.up_proj.weight                   whole   [F,H]      mlp
decoder.layers.*.mlp.linear_fc2.weight                       -> backbone.layers.*.mixer.down_proj.weight                 whole   [H,F]      mlp
decoder.layers.*.pre_mlp_layernorm.weight                    -> backbone.layers.*.norm.weight                            whole   [H]        experts
decoder.layers.*.mlp.router.weight                           -> backbone.layers.*.mixer.gate.weight                      whole   [E,H]      experts
decoder.layers.*.mlp.router.expert_bias                      -> backbone.layers.*.mixer.gate.e_score_correction_bias     fp32    [E]        experts expert_bias
-                                                            -> backbone.layers.*.mixer.gate.e_score_correction_bias     zeros   [E]        experts !expert_bias
decoder.layers.*.mlp.fc1_latent_proj.weight                  -> backbone.layers.*.mixer.fc1_latent_proj.weight           whole   [L,H]      experts latent
decoder.layers.*.mlp.fc2_latent_proj.weight                  -> backbone.layers.*.mixer.fc2_latent_proj.weight           whole   [H,L]      experts latent
decoder.layers.*.mlp.experts.experts.*.linear_fc1.weight     -> backbone.layers.*.mixer.experts.*.up_proj.weight         whole   [M,I]      experts
decoder.layers.*.mlp.experts.experts.*.linear_fc2.weight     -> backbone.layers.*.mixer.experts.*.down_proj.weight       whole   [I,M]      experts
decoder.layers.*.mlp.shared_experts.linear_fc1.weight        -> backbone.layers.*.mixer.shared_experts.up_proj.weight    whole   [S,H]      experts
decoder.layers.*.mlp.shared_experts.linear_fc2.weight        -> backbone.layers.*.mixer.shared_experts.down_proj.weight  whole   [H,S]      experts
decoder.final_norm.weight                                    -> backbone.norm_f.weight                                   whole   [H]
output_layer.weight                                          -> lm_head.weight                                           used    [V,H]
""")


def _config(d: Dimensions, arguments: Mapping[str, Any]) -> dict[str, Any]:
    config = {
        "vocab_size": d.vocab,
        "hidden_size": d.hidden,
        "intermediate_size": d.ffn,
        "layers_block_type": [LAYERS[kind] for kind in d.kinds],
        "num_attention_heads": d.heads,
        "num_key_value_heads": d.groups,
        "head_dim": d.head,
        "max_position_embeddings": int(arguments.get("max_position_embeddings") or arguments["seq_length"]),
        "layer_norm_epsilon": norm_epsilon(arguments),
        "mlp_hidden_act": "relu2",
        "mamba_num_heads": d.ssm.heads,
        "mamba_head_dim": d.ssm.head,
        "n_groups": d.ssm.groups,
        "ssm_state_size": d.ssm.state,
        "conv_kernel": d.ssm.kernel,
        "time_step_min": UNBOUNDED,
        "attention_dropout": float(arguments.get("attention_dropout", 0.0)),
        "initializer_range": float(arguments.get("init_method_std", INITIALIZER_RANGE)),
        "tie_word_embeddings": False,
        "use_cache": True,
    }
    return config | (_mixture(d, arguments) if "E" in d.kinds else {})


def _mixture(d: Dimensions, arguments: Mapping[str, Any]) -> dict[str, Any]:
    groups = arguments.get("moe_router_num_groups")
    return {
        "n_routed_experts": d.experts,
        "num_experts_per_tok": d.topk,
        "moe_intermediate_size": d.expert_ffn,
        "moe_shared_expert_intermediate_size": d.shared_ffn,
        "moe_latent_size": d.expert_latent or None,
        "n_group": int(groups or 1),
        "topk_group": int(arguments.get("moe_router_group_topk") or 1) if groups else 1,
        "norm_topk_prob": d.topk > 1,
        "routed_scaling_factor": float(arguments.get("moe_router_topk_scaling_factor") or 1.0),
    }


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    symbols = {name: symbol for symbol, name in LAYERS.items()}
    pattern = "".join(symbols[one] for one in config["layers_block_type"])
    arguments = {
        "num_layers": len(pattern),
        "hybrid_layer_pattern": pattern,
        "hidden_size": config["hidden_size"],
        "num_attention_heads": config["num_attention_heads"],
        "group_query_attention": True,
        "num_query_groups": config["num_key_value_heads"],
        "kv_channels": config["head_dim"],
        "ffn_hidden_size": config["intermediate_size"],
        "max_position_embeddings": config["max_position_embeddings"],
        "seq_length": config["max_position_embeddings"],
        "normalization": "RMSNorm",
        "layernorm_epsilon": config["layer_norm_epsilon"],
        "add_bias_linear": False,
        "squared_relu": True,
        "position_embedding_type": "none",
        "untie_embeddings_and_output_weights": not config["tie_word_embeddings"],
        "init_method_std": float(config["initializer_range"]),
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "mamba_num_heads": config["mamba_num_heads"],
        "mamba_head_dim": config["mamba_head_dim"],
        "mamba_num_groups": config["n_groups"],
        "mamba_state_dim": config["ssm_state_size"],
    }
    return arguments | (_mixture_arguments(config) if "E" in pattern else {})


def _mixture_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    grouped = config["n_group"] > 1
    return {
        "num_experts": config["n_routed_experts"],
        "moe_router_topk": config["num_experts_per_tok"],
        "moe_ffn_hidden_size": config["moe_intermediate_size"],
        "moe_shared_expert_intermediate_size": config["moe_shared_expert_intermediate_size"],
        "moe_latent_size": config["moe_latent_size"],
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "moe_router_num_groups": config["n_group"] if grouped else None,
        "moe_router_group_topk": config["topk_group"] if grouped else None,
        "moe_router_topk_scaling_factor": float(config["routed_scaling_factor"]),
        "moe_router_dtype": "fp32",
    }


NEMOTRON_H = Family(
    name="nemotron_h",
    title="Nemotron-H",
    architecture="NemotronHForCausalLM",
    requirements=(
        Requirement("untie_embeddings_and_output_weights", False, ON, "transformers' class has a head of its own"),
    )
    + changed(
        allow(BLOCK, is_hybrid_model=SWITCH),
        Requirement(
            "hybrid_layer_pattern", None, _known_layers,
            "it has Mamba (M), attention (*), MLP (-) and mixture (E) layers alone, and none for multi-token prediction",
        ),
        Requirement("position_embedding_type", "learned_absolute", one_of("none"), "its attention knows no positions"),
        Requirement("swiglu", False, OFF, "its MLPs are of two matrices, with squared ReLU"),
        Requirement("squared_relu", False, ON, "its MLPs are of two matrices, with squared ReLU: train with --squared-relu"),
    )
    + _where_experts_are(
        changed(
            allow(SIGMOID, moe_layer_freq=anything, moe_latent_size=positive_or_none),  # the pattern says the layers
            Requirement("moe_shared_expert_intermediate_size", None, positive, "it has a shared expert in every mixture"),
        )
    ),
    keys=KEYS,
    to_config=_config,
    to_arguments=_arguments,
)  # fmt: skip
