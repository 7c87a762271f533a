"""Multi-latent attention as DeepSeek's architectures have it: requirements, fields of config.json, arguments.

Positions: Megatron and transformers both take the two numbers of a rotated pair from neighbouring places (upstream:
`apply_rotary_pos_emb` with mla_rotary_interleaved), so projections go over unchanged. transformers gives the norms inside
of attention an epsilon of 1e-6 whatever config.json says; others are refused.
"""

from collections.abc import Mapping
from typing import Any

from megatron_compete.checkpoint.families.configs import norm_epsilon
from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.requirements import (
    BLOCK,
    ON,
    Requirement,
    allow,
    anything,
    changed,
    one_of,
    positive,
)

INNER_EPSILON = 1e-6
YARN: dict[str, float] = {"original_max_position_embeddings": 4096, "beta_fast": 32.0, "beta_slow": 1.0}
"""What bounds YaRN's stretch, and its values where no --yarn-... says another (upstream: `MLATransformerConfig`); this
project's trainer takes the flags for latent attention too (`training/pretrain.py`)."""


def _yarn(arguments: Mapping[str, Any]) -> bool:
    return arguments.get("rope_type") in (None, "yarn")


def _stretched(arguments: Mapping[str, Any]) -> bool:
    """Whether positions are: Megatron's YaRN with a factor of 1 is plain RoPE."""
    return _yarn(arguments) and float(arguments.get("rotary_scaling_factor", 1.0)) != 1


def _mscale(arguments: Mapping[str, Any]) -> tuple[float, float]:
    return float(arguments.get("mscale", 1.0)), float(arguments.get("mscale_all_dim", 0.0))


LATENT_BLOCK = changed(
    allow(BLOCK, rope_type=one_of(None, "rope", "yarn")),
    Requirement("multi_latent_attention", False, ON, "it has multi-latent attention"),
    Requirement("qk_layernorm", False, ON, "it normalises the latents: train with --qk-layernorm"),
) + (
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
"""A decoder's block with multi-latent attention."""


def latent_config(d: Dimensions, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes and positions of multi-latent attention, as DeepSeek names them."""
    latent = d.mla
    return {
        "num_key_value_heads": d.heads,
        "q_lora_rank": latent.query_rank or None,
        "kv_lora_rank": latent.rank,
        "qk_nope_head_dim": latent.plain_head,
        "qk_rope_head_dim": latent.rotary_head,
        "v_head_dim": latent.value_head,
        "attention_bias": False,
        "rope_scaling": _rope_scaling(arguments),
    }


def _rope_scaling(arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    if not _stretched(arguments):
        return None
    mscale, all_dim = _mscale(arguments)
    factor = float(arguments.get("rotary_scaling_factor", 1.0))
    bounds = {name: arguments.get(f"yarn_{name}") or default for name, default in YARN.items()}
    return {"type": "yarn", "factor": factor, "mscale": mscale, "mscale_all_dim": all_dim, **bounds}


def latent_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of `latent_config`."""
    rope = config["rope_parameters"]
    yarn = {}
    if rope.get("rope_type") == "yarn":
        yarn = {
            "rope_type": "yarn",
            "rotary_scaling_factor": rope["factor"],
            "mscale": float(rope.get("mscale") or 1.0),
            "mscale_all_dim": float(rope.get("mscale_all_dim") or 0.0),
            **{f"yarn_{name}": type(default)(rope.get(name) or default) for name, default in YARN.items()},
        }
    return {
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
    } | yarn
