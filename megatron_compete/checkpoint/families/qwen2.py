"""Qwen2: a dense decoder with a bias on queries, keys and values."""

from collections.abc import Mapping
from typing import Any

from megatron_compete.checkpoint.families.blocks import decoder, grouped_attention, plain_mlp
from megatron_compete.checkpoint.families.configs import decoder_arguments, decoder_config
from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.family import Family
from megatron_compete.checkpoint.families.requirements import BLOCK, DENSE, DERIVED_HEAD, ON, Requirement, changed

BIAS = Requirement("add_qkv_bias", False, ON, "its queries, keys and values have a bias: train with --add-qkv-bias")


def _config(d: Dimensions, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return decoder_config(d, arguments) | {"use_sliding_window": False, "sliding_window": None}


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    return decoder_arguments(config) | {"add_qkv_bias": True}


QWEN2 = Family(
    name="qwen2",
    title="Qwen2",
    architecture="Qwen2ForCausalLM",
    requirements=DENSE + changed(BLOCK, BIAS, DERIVED_HEAD),
    tensors=lambda d: decoder(d, grouped_attention, plain_mlp),
    to_config=_config,
    to_arguments=_arguments,
)
