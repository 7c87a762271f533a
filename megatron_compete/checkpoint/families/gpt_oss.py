"""GPT-OSS: attention with learned sinks and a window in every other layer, biases everywhere, a limited gated activation.

The hub's checkpoints have a layer's experts in one tensor, the columns of gate and up in turns. Published weights are
MXFP4, which `config.json` says and the import refuses.

Megatron's window is how many tokens a query sees before itself (upstream: `get_sliding_window_causal_mask`), transformers'
counts the query's own.
"""

from collections.abc import Mapping
from typing import Any

from megatron_compete.checkpoint.families.configs import (
    decoder_arguments,
    decoder_config,
    softmax_router_arguments,
)
from megatron_compete.checkpoint.families.dimensions import Dimensions, layer_pattern
from megatron_compete.checkpoint.families.family import Family
from megatron_compete.checkpoint.families.key_table import read_keys
from megatron_compete.checkpoint.families.requirements import (
    BLOCK,
    EXPERTS,
    OFF,
    ON,
    SWITCH,
    Requirement,
    allow,
    anything,
    changed,
    number,
    one_of,
    positive_number,
)

ALPHA = 1.702
"""Of Megatron's quick GELU."""
YARN = {"yarn_original_max_position_embeddings": 4096, "yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0}
"""Their meaning where they are not set (upstream: `_apply_yarn_config_from_args`)."""
UNUSED_WINDOW = 128
"""Of a model in which no layer has one: transformers makes the mask all the same."""
SLIDING, FULL = "sliding_attention", "full_attention"


def _stretched(arguments: Mapping[str, Any]) -> bool:
    return arguments.get("position_embedding_type") == "yarn"


def _looks_back(value: Any) -> bool:
    return value is None or (len(value) == 2 and value[0] >= 0 and value[1] == 0)


KEYS = read_keys("""
embedding.word_embeddings.weight                             -> model.embed_tokens.weight                       used         [V,H]
decoder.layers.*.self_attention.linear_qkv.layer_norm_weight -> model.layers.*.input_layernorm.weight           whole        [H]
decoder.layers.*.input_layernorm.weight                      -> model.layers.*.input_layernorm.weight           also         [H]
decoder.layers.*.self_attention.linear_qkv.weight            -> model.layers.*.self_attn.q_proj.weight          q            [Q,H]
decoder.layers.*.self_attention.linear_qkv.weight            -> model.layers.*.self_attn.k_proj.weight          k            [K,H]
decoder.layers.*.self_attention.linear_qkv.weight            -> model.layers.*.self_attn.v_proj.weight          v            [K,H]
decoder.layers.*.self_attention.linear_qkv.bias              -> model.layers.*.self_attn.q_proj.bias            q            [Q]
decoder.layers.*.self_attention.linear_qkv.bias              -> model.layers.*.self_attn.k_proj.bias            k            [K]
decoder.layers.*.self_attention.linear_qkv.bias              -> model.layers.*.self_attn.v_proj.bias            v            [K]
decoder.layers.*.self_attention.core_attention.softmax_offset -> model.layers.*.self_attn.sinks                 whole        [N]
decoder.layers.*.self_attention.linear_proj.weight           -> model.layers.*.self_attn.o_proj.weight          whole        [H,Q]
decoder.layers.*.self_attention.linear_proj.bias             -> model.layers.*.self_attn.o_proj.bias            whole        [H]
decoder.layers.*.pre_mlp_layernorm.weight                    -> model.layers.*.post_attention_layernorm.weight  whole        [H]
decoder.layers.*.mlp.linear_fc1.layer_norm_weight            -> model.layers.*.post_attention_layernorm.weight  also         [H]
decoder.layers.*.mlp.router.weight                           -> model.layers.*.mlp.router.weight                whole        [E,H]
decoder.layers.*.mlp.router.bias                             -> model.layers.*.mlp.router.bias                  whole        [E]
decoder.layers.*.mlp.experts.experts.*.linear_fc1.weight     -> model.layers.*.mlp.experts.gate_up_proj         interleaved  [E,H,2M]
decoder.layers.*.mlp.experts.experts.*.linear_fc1.bias       -> model.layers.*.mlp.experts.gate_up_proj_bias    interleaved  [E,2M]
decoder.layers.*.mlp.experts.experts.*.linear_fc2.weight     -> model.layers.*.mlp.experts.down_proj            transposed   [E,M,H]
decoder.layers.*.mlp.experts.experts.*.linear_fc2.bias       -> model.layers.*.mlp.experts.down_proj_bias       experts      [E,H]
decoder.final_layernorm.weight                               -> model.norm.weight                               whole        [H]
output_layer.weight                                          -> lm_head.weight                                  used         [V,H]   !tied
""")


def _config(d: Dimensions, arguments: Mapping[str, Any]) -> dict[str, Any]:
    window = arguments.get("window_size")
    windowed = layer_pattern(arguments.get("window_attn_skip_freq"), d.layers) if window else (False,) * d.layers
    return decoder_config(d, arguments) | {
        "head_dim": d.head,
        "intermediate_size": d.expert_ffn,
        "num_local_experts": d.experts,
        "num_experts_per_tok": d.topk,
        "attention_bias": True,
        "swiglu_alpha": ALPHA,
        "swiglu_limit": float(arguments["activation_func_clamp_value"]),
        "sliding_window": window[0] + 1 if window else UNUSED_WINDOW,
        "layer_types": [SLIDING if one else FULL for one in windowed],
        "rope_scaling": _rope_scaling(arguments),
        "output_router_logits": False,
    }


def _rope_scaling(arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    if not _stretched(arguments):
        return {"rope_type": "default"}  # without one transformers takes that of the published models
    bounds = {name.removeprefix("yarn_"): arguments.get(name) or default for name, default in YARN.items()}
    return {
        "rope_type": "yarn",
        "factor": float(arguments.get("rotary_scaling_factor") or 1.0),
        "truncate": arguments.get("yarn_correction_range_round_to_int") is not False,
        **bounds,
    }


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    experts = softmax_router_arguments(config, config["num_local_experts"], config["intermediate_size"])
    return (
        decoder_arguments(config)
        | experts
        | _positions(config["rope_parameters"])
        | _window(config)
        | {
            "add_bias_linear": True,
            "swiglu": False,
            "quick_geglu": True,
            "glu_linear_offset": 1.0,
            "activation_func_clamp_value": config["swiglu_limit"],
            "softmax_type": "learnable",
        }
    )


def _positions(rope: Mapping[str, Any]) -> dict[str, Any]:
    if rope.get("rope_type") != "yarn":
        return {}
    bounds = {name: type(default)(rope.get(name.removeprefix("yarn_")) or default) for name, default in YARN.items()}
    return bounds | {
        "position_embedding_type": "yarn",
        "rotary_scaling_factor": float(rope["factor"]),
        "yarn_correction_range_round_to_int": rope.get("truncate", True),
    }


def _window(config: Mapping[str, Any]) -> dict[str, Any]:
    """Layers without a window everywhere: no window."""
    windowed = [int(one == SLIDING) for one in config.get("layer_types") or ()]
    if not any(windowed):
        return {}
    return {"window_size": (config["sliding_window"] - 1, 0), "window_attn_skip_freq": windowed}


GPT_OSS = Family(
    name="gpt_oss",
    title="GPT-OSS",
    architecture="GptOssForCausalLM",
    requirements=changed(
        allow(
            BLOCK,
            position_embedding_type=one_of("rope", "yarn"),
            add_qkv_bias=SWITCH,  # they are among the others
            glu_linear_offset=number(1.0),
            activation_func_clamp_value=positive_number,
        ),
        Requirement("add_bias_linear", True, ON, "it has biases everywhere: train without --disable-bias-linear"),
        Requirement("softmax_type", "vanilla", one_of("learnable"), "it has learned sinks"),
        Requirement("window_size", None, _looks_back, "its window ends at the query"),
        Requirement("swiglu", False, OFF, "its activation is quick GELU's, gated: train with --quick-geglu"),
        Requirement("quick_geglu", False, ON, "its activation is quick GELU's, gated: train with --quick-geglu"),
    )
    + EXPERTS
    + (
        Requirement("mscale", 1.0, anything, "its YaRN scales by the factor alone", where=lambda a: not _stretched(a) or a.get("mscale", 1.0) == 1),
        Requirement("mscale_all_dim", 0.0, anything, "its YaRN scales by the factor alone", where=lambda a: not _stretched(a) or not a.get("mscale_all_dim")),
    ),
    keys=KEYS,
    to_config=_config,
    to_arguments=_arguments,
)  # fmt: skip
