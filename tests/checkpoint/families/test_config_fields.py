"""config.json as users' folders have it: what says nothing passes, what says something is the same or has a way out."""

import importlib
import inspect
import re
from typing import Any

import pytest
from transformers import CONFIG_MAPPING, masking_utils, modeling_rope_utils

from megatron_compete.checkpoint.families import FAMILIES, read_config
from megatron_compete.checkpoint.families.config_fields import BESIDE, NOT_THE_MODEL, known_fields
from megatron_compete.checkpoint.families.registry import unread_fields
from megatron_compete.common.errors import CompeteError
from tests.checkpoint import hf_models

STOCK = [name for name, family in FAMILIES.items() if not family.code]


def config(family: str, **more: Any) -> dict[str, Any]:
    return CONFIG_MAPPING[family](**hf_models.CONFIGS[family]).to_dict() | more


LAYERS_DIFFER = ("gpt_oss", "qwen3_next", "nemotron_h")
NOTHING: list[dict[str, Any]] = [
    {"_attn_implementation_autoset": True, "attn_implementation": "sdpa"},
    {"unsloth_version": "2025.5.7", "unsloth_fixed": True},
    {"tokenizer_class": "Qwen2Tokenizer"},
    {"torch_dtype": "float32"},
    {"max_length": 4096, "temperature": 0.7, "top_p": 0.9},
    {"torchscript": False, "use_bfloat16": False, "is_decoder": True},
    {"moe_aux_loss": 0.1, "model_name": "x"},
    {"layer_types": ["full_attention"] * 2},
    {"is_causal": True},
]


@pytest.mark.parametrize("more", NOTHING, ids=str)
@pytest.mark.parametrize("family", STOCK)
def test_what_says_nothing_of_the_model_passes(family: str, more: dict[str, Any]) -> None:
    if "layer_types" not in more or family not in LAYERS_DIFFER:
        assert read_config(config(family, **more)) == read_config(config(family))


def test_a_window_that_no_layer_has_is_none() -> None:
    full = {"layer_types": ["full_attention"] * 2}
    arguments = read_config(config("gpt_oss", **full))[1]
    assert arguments == read_config(config("gpt_oss", **full, sliding_window=None))[1]
    assert "window_size" not in arguments and "window_size" in read_config(config("gpt_oss"))[1]


def test_what_is_passed_over_is_known() -> None:
    more = {"unsloth_version": "2025.5.7", "model_name": "x", "bos_token_id": 5}
    assert unread_fields(config("qwen3_moe", **more)) == ["model_name", "unsloth_version"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"sliding_window": 32, "use_sliding_window": True}, "sliding_window 32, .* no longer than the window"),
        ({"quantization_config": {"quant_method": "fp8"}}, r"quantization_config .* dequantize\(\)"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types .* no longer than the window"),
        ({"is_causal": False}, "is_causal False, and Megatron has True there"),
        ({"attention_chunk_size": 64}, "attention_chunk_size 64"),
        ({"hidden_act": "gelu"}, "hidden_act gelu, and Megatron has silu there: if the model does not depend on it"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_parameters .* set rope_scaling to null"),
    ],
    ids=str,
)
def test_what_megatron_has_no_equal_for_has_a_way_out(more: dict[str, Any], message: str) -> None:
    with pytest.raises(CompeteError, match=message):
        read_config(config("qwen3_moe", **more))


@pytest.mark.parametrize("family", STOCK)
def test_heads_of_keys_that_are_not_given_are_those_of_queries(family: str) -> None:
    heads = hf_models.CONFIGS[family]["num_attention_heads"]
    assert read_config(config(family, num_key_value_heads=None)) == read_config(
        config(family, num_key_value_heads=heads)
    )


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen2_moe"])
def test_experts_in_every_second_layer(family: str) -> None:
    more: dict[str, Any] = {"num_hidden_layers": 4, "layer_types": None, "decoder_sparse_step": 2}
    arguments = read_config(config(family, **more))[1]
    assert arguments["moe_layer_freq"] == [0, 1, 0, 1]
    arguments = read_config(config(family, **more, mlp_only_layers=[3]))[1]
    assert arguments["moe_layer_freq"] == [0, 1, 0, 0]


@pytest.mark.parametrize("family", STOCK)
def test_no_code_of_transformers_reads_a_field_that_we_pass_over(family: str) -> None:
    """Fails when an upgrade of transformers reads a name that its class of the architecture does not list."""
    model = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    source = "".join(map(inspect.getsource, (model, masking_utils, modeling_rope_utils)))
    read = set(re.findall(r"config, \"(\w+)\"", source)) | set(
        re.findall(r"config\.(\w+)\b(?!\()", inspect.getsource(model))
    )
    assert len(read) > 10
    assert read <= known_fields(FAMILIES[family]) | BESIDE.keys() | NOT_THE_MODEL


@pytest.mark.parametrize("field", ["num_hidden_layers", "hidden_size", "num_experts", "vocab_size", "rope_parameters"])
@pytest.mark.parametrize("value", [None, "x", -1, 0, 2.5, [], {}, True, 10**30, float("nan")], ids=str)
def test_values_of_another_type_are_refused_in_a_line(field: str, value: Any) -> None:
    try:
        read_config(config("qwen3_moe", **{field: value}))
    except CompeteError as error:
        assert "config.json" in str(error) or "--" in str(error)
