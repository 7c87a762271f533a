"""Qwen3: a dense decoder that normalises queries and keys, with a head size of its own."""

from collections.abc import Mapping
from typing import Any

from megatron_compete.checkpoint.families.blocks import decoder, grouped_attention, plain_mlp
from megatron_compete.checkpoint.families.configs import decoder_arguments, decoder_config
from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.family import Family
from megatron_compete.checkpoint.families.requirements import BLOCK, DENSE, QK_NORM, changed


def _config(d: Dimensions, arguments: Mapping[str, Any]) -> dict[str, Any]:
    own = {"head_dim": d.head, "attention_bias": False, "use_sliding_window": False, "sliding_window": None}
    return decoder_config(d, arguments) | own


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    return decoder_arguments(config) | {"qk_layernorm": True}


QWEN3 = Family(
    name="qwen3",
    title="Qwen3",
    architecture="Qwen3ForCausalLM",
    requirements=DENSE + changed(BLOCK, QK_NORM),
    tensors=lambda d: decoder(d, grouped_attention, plain_mlp),
    to_config=_config,
    to_arguments=_arguments,
)
