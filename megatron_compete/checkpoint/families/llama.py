"""Llama: the plain dense decoder, with or without Llama 3's scaled rotary frequencies."""

from collections.abc import Mapping
from typing import Any

from megatron_compete.checkpoint.families.blocks import decoder, grouped_attention, plain_mlp
from megatron_compete.checkpoint.families.configs import LLAMA3_ROPE, decoder_arguments, decoder_config
from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.family import Family
from megatron_compete.checkpoint.families.requirements import BLOCK, DENSE, SWITCH, allow


def _config(d: Dimensions, arguments: Mapping[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {"head_dim": d.head, "attention_bias": False, "mlp_bias": False, "rope_scaling": None}
    if arguments.get("use_rope_scaling"):
        factor = float(arguments.get("rope_scaling_factor", 8.0))
        config["rope_scaling"] = {"rope_type": "llama3", "factor": factor, **LLAMA3_ROPE}
    return decoder_config(d, arguments) | config


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    arguments = decoder_arguments(config)
    if config["rope_parameters"].get("rope_type") == "llama3":
        arguments |= {"use_rope_scaling": True, "rope_scaling_factor": config["rope_parameters"]["factor"]}
    return arguments


LLAMA = Family(
    name="llama",
    title="Llama",
    architecture="LlamaForCausalLM",
    requirements=DENSE + allow(BLOCK, use_rope_scaling=SWITCH),
    tensors=lambda d: decoder(d, grouped_attention, plain_mlp),
    to_config=_config,
    to_arguments=_arguments,
)
