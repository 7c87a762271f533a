"""All families, which one a checkpoint's arguments make, and which one a config.json is."""

from collections.abc import Mapping
from typing import Any

from megatron_compete.checkpoint.families.competesmoe import COMPETESMOE
from megatron_compete.checkpoint.families.config_fields import check_fields, complete, passed_over
from megatron_compete.checkpoint.families.deepseek_v2 import DEEPSEEK_V2
from megatron_compete.checkpoint.families.deepseek_v3 import DEEPSEEK_V3
from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.family import Family
from megatron_compete.checkpoint.families.glm4_moe import GLM4_MOE
from megatron_compete.checkpoint.families.gpt_oss import GPT_OSS
from megatron_compete.checkpoint.families.llama import LLAMA
from megatron_compete.checkpoint.families.mistral import MISTRAL
from megatron_compete.checkpoint.families.mixtral import MIXTRAL
from megatron_compete.checkpoint.families.nemotron_h import NEMOTRON_H
from megatron_compete.checkpoint.families.qwen2 import QWEN2
from megatron_compete.checkpoint.families.qwen2_moe import QWEN2_MOE
from megatron_compete.checkpoint.families.qwen3 import QWEN3
from megatron_compete.checkpoint.families.qwen3_moe import QWEN3_MOE
from megatron_compete.checkpoint.families.qwen3_next import QWEN3_NEXT
from megatron_compete.common.errors import CompeteError

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        MIXTRAL,
        QWEN3_MOE,
        QWEN2_MOE,
        DEEPSEEK_V3,
        DEEPSEEK_V2,
        GLM4_MOE,
        QWEN3_NEXT,
        GPT_OSS,
        NEMOTRON_H,
        LLAMA,
        MISTRAL,
        QWEN3,
        QWEN2,
        COMPETESMOE,
    )
}
"""By name, in the order in which an export tries them; the last needs code of its own and expresses the most."""


NO_EQUAL: dict[str, str] = {
    "olmoe": "it normalises queries and keys over all heads, Megatron head by head",
    "minimax_m2": "it normalises queries and keys over all heads, Megatron head by head",
    "deepseek_v32": "Megatron has its sparse attention as an experiment, which is not converted",
    "kimi_linear": "Megatron has no Kimi delta attention",
    "llama4": "Megatron has no attention in chunks",
    "phi3": "its models of long context have LongRoPE, which Megatron has not",
}
"""Other architectures that people train, and what Megatron does not have of each."""


def choose_family(arguments: Mapping[str, Any], name: str | None = None) -> Family:
    """The family of a model trained with `arguments`: the first that expresses all of them, or the one named.

    Raises:
        CompeteError: names the argument that cannot be expressed.
    """
    if name is not None:
        FAMILIES[name].check(arguments)
        return FAMILIES[name]
    for family in FAMILIES.values():
        if family.problem(arguments) is None:
            return family
    COMPETESMOE.check(arguments)
    raise AssertionError("the last family has no problem and was not chosen")


def family_of_config(config: Mapping[str, Any]) -> Family:
    """The family that a config.json names.

    Raises:
        CompeteError: an architecture that is not one of these.
    """
    kind = config.get("model_type")
    known = FAMILIES | {alias: family for family in FAMILIES.values() for alias in family.aliases}
    if kind in NO_EQUAL:
        raise CompeteError(f"config.json has model_type {kind}: {NO_EQUAL[kind]}")
    if kind not in known:
        raise CompeteError(f"config.json has model_type {kind}: supported are {', '.join(known)}")
    return known[kind]


def read_config(config: Mapping[str, Any]) -> tuple[Family, dict[str, Any]]:
    """Family and Megatron's arguments of a config.json.

    The arguments are turned back into a config.json, and every field that could change the model must be the same: so
    a field that Megatron has no equal for is refused.

    Raises:
        CompeteError: another architecture, or a field that cannot be expressed.
    """
    family = family_of_config(config)
    given = complete(family, config)
    try:
        arguments = family.to_arguments(given)
        arguments["vocab_size"] = given["vocab_size"]
        family.check(arguments)
        d = Dimensions.from_arguments(arguments, padded_vocab=given["vocab_size"])
        made = family.to_config(d, arguments)
    except CompeteError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # a value of another type
        raise CompeteError(f"config.json is not that of a {family.title}: {type(error).__name__} {error}") from error
    check_fields(family, given, complete(family, made))
    return family, arguments


def unread_fields(config: Mapping[str, Any]) -> list[str]:
    """Fields of a config.json that `read_config` takes and passes over, because no code of transformers reads them."""
    family, arguments = read_config(config)
    d = Dimensions.from_arguments(arguments, padded_vocab=arguments["vocab_size"])
    given, made = (complete(family, one) for one in (config, family.to_config(d, arguments)))
    return sorted(passed_over(family, given, made))
