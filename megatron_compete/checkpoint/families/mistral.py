"""Mistral: a dense decoder, in Llama's names; attention in a window is refused."""

from collections.abc import Mapping
from typing import Any

from megatron_compete.checkpoint.families.configs import decoder_arguments, decoder_config
from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.family import Family
from megatron_compete.checkpoint.families.llama import KEYS
from megatron_compete.checkpoint.families.requirements import BLOCK, DENSE


def _config(d: Dimensions, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return decoder_config(d, arguments) | {"head_dim": d.head, "sliding_window": None}


MISTRAL = Family(
    name="mistral",
    title="Mistral",
    architecture="MistralForCausalLM",
    requirements=DENSE + BLOCK,
    keys=KEYS,
    to_config=_config,
    to_arguments=decoder_arguments,
)
