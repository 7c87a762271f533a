"""CompeteSMoE's own architecture: what no stock one expresses, with code that goes along (`checkpoint/custom_code`).

Among others the authors' 154M recipe: LayerNorm, rotation of half a head, ReLU experts of two matrices. It expresses
any of these together with biases and norms of attention, shared experts, and every router of Megatron's top-K kind.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from megatron_compete.checkpoint.families.blocks import MLP, decoder, grouped_attention, router, same, score_correction
from megatron_compete.checkpoint.families.configs import (
    INITIALIZER_RANGE,
    ROTARY_BASE,
    layer_frequency,
    norm_epsilon,
    whole,
)
from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.family import Family, TensorRule
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


def _mlp(d: Dimensions, layer: int, prefix: str) -> Iterator[TensorRule]:
    moe = prefix + "mlp."
    if not d.moe_layers[layer]:
        yield from MLP.dense(d, layer, moe)
        return
    yield router(d, layer, moe + "gate.weight")
    if d.expert_bias:
        yield score_correction(d, layer, moe + "gate.e_score_correction_bias")
    yield from MLP.experts(d, layer, moe + "experts.")
    if d.shared_ffn:
        yield from MLP.shared(d, layer, moe + "shared_expert.")
    if d.shared_ffn and d.shared_gate:
        yield same(layer, "mlp.shared_experts.gate_weight", moe + "shared_expert_gate.weight", 1, d.hidden)


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
                moe_router_score_function=one_of("softmax", "sigmoid", "sqrtsoftplus"),
                moe_router_pre_softmax=SWITCH,
                moe_router_topk_scaling_factor=anything,
                moe_router_num_groups=positive_or_none,
                moe_router_group_topk=positive_or_none,
            ),
            BIAS,
        )
    ),
    tensors=lambda d: decoder(d, grouped_attention, _mlp),
    to_config=_config,
    to_arguments=_arguments,
    code=("configuration_competesmoe.py", "modeling_competesmoe.py"),
)
