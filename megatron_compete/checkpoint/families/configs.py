"""Fields of config.json that decoders share, in both directions.

Written in the form that transformers 4 wrote, as the hub's checkpoints are, and that 4 and 5 read (`rope_theta`, `torch_dtype`).
"""

from collections.abc import Mapping
from typing import Any

from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.common.errors import CompeteError

INITIALIZER_RANGE = 0.02
ROTARY_BASE = 10000
NORM_EPSILON = 1e-5

LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Fixed in Megatron (upstream: `RotaryEmbedding._apply_scaling`); --rope-scaling-factor is free."""


def norm_epsilon(arguments: Mapping[str, Any]) -> float:
    """--layernorm-epsilon, or --norm-epsilon as older versions called it."""
    return float(arguments.get("layernorm_epsilon", arguments.get("norm_epsilon", NORM_EPSILON)))


def decoder_config(d: Dimensions, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What every decoder with grouped-query attention states."""
    return {
        "vocab_size": d.vocab,
        "hidden_size": d.hidden,
        "intermediate_size": d.ffn,
        "num_hidden_layers": d.layers,
        "num_attention_heads": d.heads,
        "num_key_value_heads": d.groups,
        "hidden_act": "silu",
        "max_position_embeddings": int(arguments.get("max_position_embeddings") or arguments["seq_length"]),
        "rope_theta": float(arguments.get("rotary_base", ROTARY_BASE)),
        "rms_norm_eps": norm_epsilon(arguments),
        "attention_dropout": float(arguments.get("attention_dropout", 0.0)),
        "initializer_range": float(arguments.get("init_method_std", INITIALIZER_RANGE)),
        "tie_word_embeddings": d.tied,
        "use_cache": True,
    }


def decoder_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Megatron's arguments for a decoder of SwiGLU, RMSNorm, grouped-query attention and RoPE.

    Args:
        config: with every default filled in, as `registry.read_config` makes it.
    """
    rope = config["rope_parameters"]
    heads = config["num_attention_heads"]
    return {
        "num_layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
        "num_attention_heads": heads,
        "group_query_attention": True,
        "num_query_groups": config.get("num_key_value_heads") or heads,
        "kv_channels": config.get("head_dim") or config["hidden_size"] // heads,
        "ffn_hidden_size": config["intermediate_size"],
        "max_position_embeddings": config["max_position_embeddings"],
        "seq_length": config["max_position_embeddings"],
        "normalization": "RMSNorm",
        "layernorm_epsilon": config["rms_norm_eps"],
        "add_bias_linear": False,
        "add_qkv_bias": False,
        "qk_layernorm": False,
        "swiglu": True,
        "position_embedding_type": "rope",
        "rotary_base": whole(rope["rope_theta"]),
        "rotary_percent": float(rope.get("partial_rotary_factor") or 1.0),
        "untie_embeddings_and_output_weights": not config["tie_word_embeddings"],
        "init_method_std": float(config.get("initializer_range") or INITIALIZER_RANGE),
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
    }


def whole(value: float) -> int | float:
    """A number without its ".0": --rotary-base is an integer to Megatron.

    Raises:
        CompeteError: a fraction.
    """
    if value != int(value):
        raise CompeteError(f"config.json has rope_theta {value}: Megatron's --rotary-base is an integer")
    return int(value)


def softmax_router_arguments(config: Mapping[str, Any], experts: int, width: int) -> dict[str, Any]:
    """Megatron's arguments for `experts` routed experts behind a softmax.

    Without norm_topk_prob the K weights are the K probabilities over all experts: --moe-router-pre-softmax.
    """
    return {
        "num_experts": experts,
        "moe_ffn_hidden_size": width,
        "moe_router_topk": config["num_experts_per_tok"],
        "moe_router_score_function": "softmax",
        "moe_router_pre_softmax": not config.get("norm_topk_prob", True),
    }


def sparse_config(d: Dimensions, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Softmax-routed experts in all layers or some, as Qwen names them."""
    return {
        "moe_intermediate_size": d.expert_ffn,
        "num_experts": d.experts,
        "num_experts_per_tok": d.topk,
        "norm_topk_prob": not arguments.get("moe_router_pre_softmax", False),
        "decoder_sparse_step": 1,
        "mlp_only_layers": d.dense_layers,
        "use_sliding_window": False,
        "sliding_window": None,
        "output_router_logits": False,
    }


def sparse_layers(config: Mapping[str, Any]) -> int | list[int]:
    """--moe-layer-freq of a model in Qwen's names: every so many layers, but for those named."""
    step, layers = config["decoder_sparse_step"], config["num_hidden_layers"]
    return layer_frequency(
        [one for one in range(layers) if one in config["mlp_only_layers"] or (one + 1) % step], layers
    )


def layer_frequency(dense: list[int], layers: int) -> int | list[int]:
    """--moe-layer-freq of a model whose layers `dense` have no experts."""
    return [int(layer not in dense) for layer in range(layers)] if dense else 1


def sigmoid_router_config(d: Dimensions, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Sigmoid scores with a score-correction bias, chosen among groups, as DeepSeek-V3 names it."""
    groups = arguments.get("moe_router_num_groups")
    return {
        "moe_intermediate_size": d.expert_ffn,
        "n_routed_experts": d.experts,
        "num_experts_per_tok": d.topk,
        "n_shared_experts": d.shared_ffn // d.expert_ffn,
        "first_k_dense_replace": len(d.dense_layers),
        "n_group": int(groups or 1),
        "topk_group": int(arguments.get("moe_router_group_topk") or 1) if groups else 1,
        "norm_topk_prob": d.topk > 1,  # upstream: `topk_routing_with_score_function`
        "routed_scaling_factor": float(arguments.get("moe_router_topk_scaling_factor") or 1.0),
        "num_nextn_predict_layers": d.mtp_layers,
    }


def sigmoid_router_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of `sigmoid_router_config`."""
    grouped = config["n_group"] > 1
    dense = list(range(config["first_k_dense_replace"]))
    return {
        "num_experts": config["n_routed_experts"],
        "moe_ffn_hidden_size": config["moe_intermediate_size"],
        "moe_shared_expert_intermediate_size": config["n_shared_experts"] * config["moe_intermediate_size"],
        "moe_layer_freq": layer_frequency(dense, config["num_hidden_layers"]),
        "moe_router_topk": config["num_experts_per_tok"],
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "moe_router_num_groups": config["n_group"] if grouped else None,
        "moe_router_group_topk": config["topk_group"] if grouped else None,
        "moe_router_topk_scaling_factor": config["routed_scaling_factor"],
        "moe_router_dtype": "fp32",
    }


def sigmoid_router_caution(arguments: Mapping[str, Any]) -> str | None:
    """transformers 4 gives experts of groups that were not chosen a score of 0, the others minus infinity.

    With a correction bias below minus the score it can then choose one of them: 1.3 in logits on a random model.
    """
    if arguments.get("moe_router_group_topk") and arguments.get("moe_router_enable_expert_bias"):
        return "load it with transformers 5: transformers 4 can choose experts outside of the chosen groups"
    return None
