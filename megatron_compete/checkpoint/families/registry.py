"""All families, which one a checkpoint's arguments make, and which one a config.json is."""

import copy
import importlib
from collections.abc import Mapping
from typing import Any

from megatron_compete.checkpoint.families.competesmoe import COMPETESMOE
from megatron_compete.checkpoint.families.deepseek_v3 import DEEPSEEK_V3
from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.family import Family
from megatron_compete.checkpoint.families.glm4_moe import GLM4_MOE
from megatron_compete.checkpoint.families.llama import LLAMA
from megatron_compete.checkpoint.families.mixtral import MIXTRAL
from megatron_compete.checkpoint.families.qwen2 import QWEN2
from megatron_compete.checkpoint.families.qwen2_moe import QWEN2_MOE
from megatron_compete.checkpoint.families.qwen3 import QWEN3
from megatron_compete.checkpoint.families.qwen3_moe import QWEN3_MOE
from megatron_compete.errors import CompeteError

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (MIXTRAL, QWEN3_MOE, QWEN2_MOE, DEEPSEEK_V3, GLM4_MOE, LLAMA, QWEN3, QWEN2, COMPETESMOE)
}
"""By name, in the order in which an export tries them; the last needs code of its own and expresses the most."""

NOT_THE_MODEL = frozenset({
    "_name_or_path", "_attn_implementation", "_commit_hash", "architectures", "attention_dropout", "auto_map",
    "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id", "ep_size", "id2label", "initializer_range",
    "is_encoder_decoder", "label2id", "max_window_layers", "moe_layer_freq", "num_mtp_layers",
    "num_nextn_predict_layers", "output_attentions", "output_hidden_states", "output_router_logits", "pad_token_id",
    "pretraining_tp", "problem_type", "return_dict", "router_aux_loss_coef", "router_jitter_noise", "torch_dtype",
    "transformers_version", "use_cache",
})  # fmt: skip
"""Fields of config.json that do not change logits in evaluation, or only say where the file came from."""


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
    if kind not in FAMILIES:
        raise CompeteError(f"config.json has model_type {kind}: supported are {', '.join(FAMILIES)}")
    return FAMILIES[kind]


def read_config(config: Mapping[str, Any]) -> tuple[Family, dict[str, Any]]:
    """Family and Megatron's arguments of a config.json.

    The arguments are turned back into a config.json, and every field that could change the model must be the same: so
    a field that Megatron has no equal for, known or not, is refused.

    Raises:
        CompeteError: another architecture, or a field that cannot be expressed.
    """
    family = family_of_config(config)
    given = _complete(family, config)
    try:
        arguments = family.to_arguments(given)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise CompeteError(f"config.json is not that of a {family.title}: {type(error).__name__} {error}") from error
    arguments["vocab_size"] = given["vocab_size"]
    family.check(arguments)
    d = Dimensions.from_arguments(arguments, padded_vocab=given["vocab_size"])
    made = _complete(family, family.to_config(d, arguments))
    for field in sorted(given.keys() - NOT_THE_MODEL):
        if not _equal(given.get(field), made.get(field)):
            raise CompeteError(
                f"config.json has {field} {given.get(field)}, and Megatron has {made.get(field)} there: not imported"
            )
    return family, arguments


def _complete(family: Family, config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with the defaults of its class filled in, in transformers' current form."""
    if family.code:
        module = importlib.import_module("megatron_compete.checkpoint.custom_code.configuration_competesmoe")
        kind: Any = module.CompeteSMoEConfig
    else:
        from transformers import CONFIG_MAPPING

        kind = CONFIG_MAPPING[family.name]
    try:
        complete: dict[str, Any] = kind.from_dict(copy.deepcopy(dict(config))).to_dict()  # it writes into nested fields
        if complete.get("head_dim", 0) is None:  # it follows from the others
            complete["head_dim"] = complete["hidden_size"] // complete["num_attention_heads"]
        return complete
    except Exception as error:  # the classes validate in many ways
        raise CompeteError(f"config.json is not that of a {family.title}: {error}") from error


def _equal(given: Any, made: Any) -> bool:
    """Equal values; a rope dictionary's fields that are not set are as if they were not there."""
    if isinstance(given, dict) and isinstance(made, dict):
        keys = {key for key in given.keys() | made.keys() if key != "type"}
        return all(_equal(given.get(key), made.get(key)) for key in keys)
    return given == made or (not given and not made)
