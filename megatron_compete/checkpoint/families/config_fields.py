"""Which fields of a config.json say what the model is, and whether Megatron has the same.

A field counts that transformers' class of the architecture knows, that its shared code reads beside (`BESIDE`), or that
our own export writes. Tools leave others in a folder (which trainer saved it, which tokenizer class it was); no code of
transformers reads them, so neither does an import.
"""

import copy
import importlib
from collections.abc import Mapping
from functools import cache
from typing import Any

from megatron_compete.checkpoint.families.configs import sparse_layers
from megatron_compete.checkpoint.families.family import Family
from megatron_compete.common.errors import CompeteError

NOT_THE_MODEL = frozenset({
    "_name_or_path", "_attn_implementation", "_commit_hash", "architectures", "attention_dropout", "auto_map",
    "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id", "ep_size", "id2label", "initializer_range",
    "hidden_dropout", "is_encoder_decoder", "label2id", "mamba_ssm_cache_dtype", "moe_shared_expert_overlap",
    "mtp_layers_block_type", "num_logits_to_keep", "rescale_prenorm_residual", "time_step_floor", "time_step_limit",
    "time_step_max", "use_mamba_kernels", "max_window_layers", "moe_layer_freq", "num_mtp_layers",
    "num_nextn_predict_layers", "output_attentions", "output_hidden_states", "output_router_logits", "pad_token_id",
    "pretraining_tp", "problem_type", "return_dict", "router_aux_loss_coef", "router_jitter_noise", "torch_dtype",
    "transformers_version", "use_cache",
})  # fmt: skip
"""Fields of the classes that do not change logits in evaluation, or only say where the file came from."""

BESIDE: Mapping[str, Any] = {
    "head_dim": None, "is_causal": True, "attention_chunk_size": None, "layer_types": None, "per_layer_config": None,
    "quantization_config": None, "sliding_window": None, "transformers_weights": None,
}  # fmt: skip
"""What transformers' code reads of any configuration though a class may not list it, and its meaning where it is not set
(`test_config_fields.py` looks for more)."""

WAYS_OUT = {
    "quantization_config": "load it with transformers, dequantize() it, and save_pretrained() the result",
    "sliding_window": "where the sequences you train on are no longer than the window it changes nothing: set it to null, "
    "and use_sliding_window to false",
    "use_sliding_window": "without a window it says nothing: set it to false",
    "layer_types": "where the sequences you train on are no longer than the window it changes nothing: take it out",
    "rope_parameters": "to train without the scaling, at the length that the model was made for, set rope_scaling to null",
    "attention_bias": "only a model whose biases are zeros can do without: drop them, and set it to false",
    "mlp_bias": "only a model whose biases are zeros can do without: drop them, and set it to false",
    "time_step_min": "Megatron does not bound Mamba's steps, and neither does NVIDIA's own code: set it to 1e-30",
    "topk_group": "to train without the limit, set topk_method to greedy",
    "transformers_weights": "save it again with save_pretrained()",
}
"""By field, what a user can do."""


MOST_LAYERS = 100_000


def complete(family: Family, config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with the defaults of its class filled in, in transformers' current form.

    Raises:
        CompeteError: the class refuses it.
    """
    given: dict[str, Any] = _with_infinities(dict(config))  # a copy: the classes write into nested fields
    layers = given.get("num_hidden_layers")
    if isinstance(layers, int | float) and not 0 <= layers <= MOST_LAYERS:  # the classes make lists of them
        raise CompeteError(f"config.json is not that of a {family.title}: num_hidden_layers {_short(layers)}")
    if given.get("num_key_value_heads", 0) is None:  # as transformers 4 took it, and as some classes refuse it
        given["num_key_value_heads"] = given.get("num_attention_heads")
    try:
        result: dict[str, Any] = _class_of(family).from_dict(given).to_dict()
        if result.get("head_dim", 0) is None:  # it follows from the others
            result["head_dim"] = result["hidden_size"] // result["num_attention_heads"]
        if "decoder_sparse_step" in result:  # one form of what can be said in two
            frequency = sparse_layers(result)
            dense = (
                [layer for layer, sparse in enumerate(frequency) if not sparse] if isinstance(frequency, list) else []
            )
            result |= {"decoder_sparse_step": 1, "mlp_only_layers": dense}
        if result.get("topk_method") == "greedy":  # groups are not read then
            result |= {"n_group": None, "topk_group": None}
    except Exception as error:  # the classes validate in many ways
        raise CompeteError(f"config.json is not that of a {family.title}: {error}") from error
    if set(result.get("layer_types") or ()) == {"full_attention"}:
        del result["layer_types"]
        if "layer_types" in known_fields(family):  # which layers have the window
            result["sliding_window"] = None
    return result


def _with_infinities(value: Any) -> Any:
    """A copy in which the numbers that JSON has no word for are what transformers wrote for them."""
    if isinstance(value, dict):
        if value.keys() == {"__float__"}:
            return float(value["__float__"])
        return {name: _with_infinities(one) for name, one in value.items()}
    return [_with_infinities(one) for one in value] if isinstance(value, list) else copy.deepcopy(value)


def check_fields(family: Family, given: Mapping[str, Any], made: Mapping[str, Any]) -> None:
    """Raise a `CompeteError` for the first field that counts and is not the same.

    Args:
        given: of the folder, `complete`.
        made: of the model that Megatron builds, `complete`.
    """
    for field in sorted(given.keys() - passed_over(family, given, made) - NOT_THE_MODEL):
        there = made.get(field, BESIDE.get(field))
        if not _equal(given[field], there):
            way_out = WAYS_OUT.get(field, "if the model does not depend on it, take it out of config.json")
            raise CompeteError(
                f"config.json has {field} {_short(given[field])}, and Megatron has {_short(there)} there: {way_out}"
            )


def passed_over(family: Family, given: Mapping[str, Any], made: Mapping[str, Any]) -> set[str]:
    """Fields that no code reads."""
    return {field for field in given if field not in known_fields(family) and field not in made and field not in BESIDE}


@cache
def known_fields(family: Family) -> frozenset[str]:
    """Names that the class of an architecture knows, in one of its forms."""
    kind = _class_of(family)
    derived = frozenset(name for name, value in vars(kind).items() if isinstance(value, property))
    return frozenset(kind().to_dict()) | frozenset(getattr(kind, "attribute_map", {})) | derived


def _class_of(family: Family) -> Any:
    if family.code:
        module = importlib.import_module("megatron_compete.checkpoint.custom_code.configuration_competesmoe")
        return module.CompeteSMoEConfig
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[family.name]


def _equal(given: Any, made: Any) -> bool:
    """Equal values; a rope dictionary's fields that are not set are as if they were not there."""
    if isinstance(given, dict) and isinstance(made, dict):
        keys = {key for key in given.keys() | made.keys() if key != "type"}
        return all(_equal(given.get(key), made.get(key)) for key in keys)
    return bool(given == made) or (not given and not made)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else text[:97] + "..."
