"""Qwen3-Next: three layers of gated delta nets to one of gated attention, and Qwen2-MoE's mixture.

All norms but the one inside of a gated delta net keep their weight as its distance from one, as --apply-layernorm-1p has
it; Megatron has it so everywhere. Layers for multi-token prediction are left out with --drop-mtp.
"""

from collections.abc import Mapping
from typing import Any

from megatron_compete.checkpoint.families.configs import (
    decoder_arguments,
    decoder_config,
    softmax_router_arguments,
    sparse_config,
    sparse_layers,
)
from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.family import Family
from megatron_compete.checkpoint.families.key_table import read_keys
from megatron_compete.checkpoint.families.qwen2_moe import SHARED
from megatron_compete.checkpoint.families.requirements import (
    BLOCK,
    EXPERTS,
    ON,
    QK_NORM,
    SWITCH,
    Requirement,
    allow,
    anything,
    changed,
    fraction,
    one_of,
)

LINEAR, FULL = "linear_attention", "full_attention"
OWN = (
    Requirement(
        "layernorm_zero_centered_gamma", False, ON, "its norms add 1 to their weight: train with --apply-layernorm-1p",
        flag="--apply-layernorm-1p",
    ),
    Requirement(
        "experimental_attention_variant", None, one_of("gated_delta_net"), "it has gated delta nets in attention's place",
    ),
    Requirement(
        "attention_output_gate", False, ON, "it gates attention's output: train with --attention-output-gate"
    ),
)  # fmt: skip

KEYS = read_keys("""
embedding.word_embeddings.weight                             -> model.embed_tokens.weight                          used   [V,H]
decoder.layers.*.self_attention.in_proj.layer_norm_weight    -> model.layers.*.input_layernorm.weight              whole  [H]        linear
decoder.layers.*.self_attention.in_proj.weight               -> model.layers.*.linear_attn.in_proj_qkvz.weight     qkvz   [GP,H]     linear
decoder.layers.*.self_attention.in_proj.weight               -> model.layers.*.linear_attn.in_proj_ba.weight       ba     [GG,H]     linear
decoder.layers.*.self_attention.conv1d.weight                -> model.layers.*.linear_attn.conv1d.weight           qkv    [GC,1,GW]  linear
decoder.layers.*.self_attention.dt_bias                      -> model.layers.*.linear_attn.dt_bias                 whole  [GN]       linear
decoder.layers.*.self_attention.A_log                        -> model.layers.*.linear_attn.A_log                   whole  [GN]       linear
decoder.layers.*.self_attention.out_norm.weight              -> model.layers.*.linear_attn.norm.weight             plus1  [GD]       linear
decoder.layers.*.self_attention.out_proj.weight              -> model.layers.*.linear_attn.out_proj.weight         whole  [H,GV]     linear
decoder.layers.*.self_attention.linear_qkv.layer_norm_weight -> model.layers.*.input_layernorm.weight              whole  [H]        !linear
decoder.layers.*.self_attention.linear_qkv.weight            -> model.layers.*.self_attn.q_proj.weight             qg     [2Q,H]     !linear
decoder.layers.*.self_attention.linear_qkv.weight            -> model.layers.*.self_attn.k_proj.weight             k      [K,H]      !linear
decoder.layers.*.self_attention.linear_qkv.weight            -> model.layers.*.self_attn.v_proj.weight             v      [K,H]      !linear
decoder.layers.*.self_attention.linear_proj.weight           -> model.layers.*.self_attn.o_proj.weight             whole  [H,Q]      !linear
decoder.layers.*.self_attention.q_layernorm.weight           -> model.layers.*.self_attn.q_norm.weight             whole  [D]        !linear
decoder.layers.*.self_attention.k_layernorm.weight           -> model.layers.*.self_attn.k_norm.weight             whole  [D]        !linear
decoder.layers.*.pre_mlp_layernorm.weight                    -> model.layers.*.post_attention_layernorm.weight     whole  [H]        experts
decoder.layers.*.mlp.linear_fc1.layer_norm_weight            -> model.layers.*.post_attention_layernorm.weight     also   [H]        experts
decoder.layers.*.mlp.linear_fc1.layer_norm_weight            -> model.layers.*.post_attention_layernorm.weight     whole  [H]        dense
decoder.layers.*.pre_mlp_layernorm.weight                    -> model.layers.*.post_attention_layernorm.weight     also   [H]        dense
decoder.layers.*.mlp.linear_fc1.weight                       -> model.layers.*.mlp.gate_proj.weight                gate   [F,H]      dense
decoder.layers.*.mlp.linear_fc1.weight                       -> model.layers.*.mlp.up_proj.weight                  up     [F,H]      dense
decoder.layers.*.mlp.linear_fc2.weight                       -> model.layers.*.mlp.down_proj.weight                whole  [H,F]      dense
decoder.layers.*.mlp.router.weight                           -> model.layers.*.mlp.gate.weight                     whole  [E,H]      experts
decoder.layers.*.mlp.experts.experts.*.linear_fc1.weight     -> model.layers.*.mlp.experts.*.gate_proj.weight      gate   [M,H]      experts
decoder.layers.*.mlp.experts.experts.*.linear_fc1.weight     -> model.layers.*.mlp.experts.*.up_proj.weight        up     [M,H]      experts
decoder.layers.*.mlp.experts.experts.*.linear_fc2.weight     -> model.layers.*.mlp.experts.*.down_proj.weight      whole  [H,M]      experts
decoder.layers.*.mlp.shared_experts.linear_fc1.weight        -> model.layers.*.mlp.shared_expert.gate_proj.weight  gate   [S,H]      experts
decoder.layers.*.mlp.shared_experts.linear_fc1.weight        -> model.layers.*.mlp.shared_expert.up_proj.weight    up     [S,H]      experts
decoder.layers.*.mlp.shared_experts.linear_fc2.weight        -> model.layers.*.mlp.shared_expert.down_proj.weight  whole  [H,S]      experts
decoder.layers.*.mlp.shared_experts.gate_weight              -> model.layers.*.mlp.shared_expert_gate.weight       whole  [1,H]      experts
decoder.final_layernorm.weight                               -> model.norm.weight                                  whole  [H]
output_layer.weight                                          -> lm_head.weight                                     used   [V,H]      !tied
""")


def _config(d: Dimensions, arguments: Mapping[str, Any]) -> dict[str, Any]:
    delta = d.gdn
    return (
        decoder_config(d, arguments)
        | sparse_config(d, arguments)
        | {
            "head_dim": d.head,
            "attention_bias": False,
            "partial_rotary_factor": float(arguments.get("rotary_percent", 1.0)),
            "shared_expert_intermediate_size": d.shared_ffn,
            "layer_types": [LINEAR if linear else FULL for linear in d.linear_layers],
            "linear_conv_kernel_dim": delta.kernel,
            "linear_key_head_dim": delta.key_head,
            "linear_value_head_dim": delta.value_head,
            "linear_num_key_heads": delta.key_heads,
            "linear_num_value_heads": delta.value_heads,
        }
    )


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    experts = softmax_router_arguments(config, config["num_experts"], config["moe_intermediate_size"])
    own = {
        "layernorm_zero_centered_gamma": True,
        "qk_layernorm": True,
        "attention_output_gate": True,
        "experimental_attention_variant": "gated_delta_net",
        "linear_attention_freq": [
            int(one == LINEAR) for one in config.get("layer_types") or [FULL] * config["num_hidden_layers"]
        ],
        "moe_layer_freq": sparse_layers(config),
        "moe_shared_expert_intermediate_size": config["shared_expert_intermediate_size"],
        "moe_shared_expert_gate": True,
    }
    sizes = ("conv_kernel_dim", "key_head_dim", "value_head_dim", "num_key_heads", "num_value_heads")
    return decoder_arguments(config) | experts | own | {f"linear_{name}": config[f"linear_{name}"] for name in sizes}


QWEN3_NEXT = Family(
    name="qwen3_next",
    title="Qwen3-Next",
    architecture="Qwen3NextForCausalLM",
    requirements=(
        changed(
            allow(BLOCK, rotary_percent=fraction, linear_attention_freq=anything, apply_layernorm_1p=SWITCH),
            QK_NORM,
            *OWN,
        )
        + changed(allow(EXPERTS, moe_router_pre_softmax=SWITCH, moe_layer_freq=anything), *SHARED)
    ),
    keys=KEYS,
    to_config=_config,
    to_arguments=_arguments,
)
