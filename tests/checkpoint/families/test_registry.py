"""Which family a model is, in both directions."""

from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from megatron_compete.checkpoint.families import FAMILIES, Dimensions, choose_family, family_of_config, read_config
from megatron_compete.checkpoint.families.registry import NO_EQUAL
from megatron_compete.common.errors import CompeteError
from tests.checkpoint import gpt

MODELS = {name: (name, changes) for name, changes in gpt.FAMILIES.items()} | gpt.VARIANTS


def config_of(family: str, arguments: dict[str, Any]) -> dict[str, Any]:
    d = Dimensions.from_arguments(arguments, vocab=gpt.VOCAB)
    return {"model_type": family, **FAMILIES[family].to_config(d, arguments)}


@pytest.mark.parametrize("model", MODELS)
def test_a_configuration_and_back(model: str) -> None:
    family, changes = MODELS[model]
    arguments = gpt.ARGUMENTS | changes
    assert choose_family(arguments, gpt.named(family)) is FAMILIES[family]
    config = config_of(family, arguments)
    found, again = read_config(config)
    assert found is FAMILIES[family]
    again["mtp_num_layers"] = changes.get("mtp_num_layers")  # the folder's tensors say
    assert config_of(family, again) == config
    ours, theirs = (Dimensions.from_arguments(one, gpt.PADDED, gpt.VOCAB) for one in (arguments, again))
    names = [[rule.names for rule in FAMILIES[family].tensors(d)] for d in (ours, theirs)]
    assert names[0] == names[1]


def test_the_one_that_is_named() -> None:
    assert choose_family(gpt.ARGUMENTS, "competesmoe") is FAMILIES["competesmoe"]
    with pytest.raises(CompeteError, match="--qk-layernorm False, which Qwen3-MoE cannot represent"):
        choose_family(gpt.ARGUMENTS, "qwen3_moe")


def test_what_no_family_expresses() -> None:
    with pytest.raises(CompeteError, match=r"--window-size .* CompeteSMoE's own architecture cannot represent"):
        choose_family(gpt.ARGUMENTS | {"window_size": (4, 0)})


def test_another_architecture() -> None:
    with pytest.raises(CompeteError, match="model_type gpt2: supported are mixtral, "):
        family_of_config({"model_type": "gpt2"})


@pytest.mark.parametrize("kind", NO_EQUAL)
def test_an_architecture_that_megatron_lacks_a_part_of(kind: str) -> None:
    assert kind in CONFIG_MAPPING and kind not in FAMILIES
    with pytest.raises(CompeteError, match=f"model_type {kind}: .*Megatron"):
        family_of_config({"model_type": kind})


def test_sizes_that_follow_from_others_and_fields_that_are_elsewhere() -> None:
    config = config_of("mixtral", gpt.ARGUMENTS | {"kv_channels": 8})
    assert read_config(config | {"head_dim": None}) == read_config(config)
    config = config_of("deepseek_v3", gpt.ARGUMENTS | gpt.FAMILIES["deepseek_v3"])
    arguments = read_config(config)[1]
    for field in ("scoring_func", "topk_method", "moe_layer_freq"):
        config.pop(field)
    assert read_config(config)[1] == arguments


KIMI_K2: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "aux_loss_alpha": 0.001,
    "bos_token_id": 163584, "eos_token_id": 163585, "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 7168,
    "initializer_range": 0.02, "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 131072,
    "model_type": "kimi_k2", "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": 384,
    "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 64, "num_experts_per_tok": 8,
    "num_hidden_layers": 61, "num_key_value_heads": 64, "num_nextn_predict_layers": 0, "pretraining_tp": 1,
    "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06, "rope_theta": 50000.0,
    "rope_scaling": {
        "beta_fast": 1.0, "beta_slow": 1.0, "factor": 32.0, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096, "type": "yarn",
    },
    "routed_scaling_factor": 2.827, "scoring_func": "sigmoid", "seq_aux": True, "tie_word_embeddings": False,
    "topk_group": 1, "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "use_cache": True, "v_head_dim": 128,
    "vocab_size": 163840,
}  # fmt: skip


def test_kimi_k2_is_a_deepseek_v3_by_another_name() -> None:
    family, arguments = read_config(KIMI_K2)
    assert family is FAMILIES["deepseek_v3"]
    assert arguments["moe_router_num_groups"] is None and arguments["moe_layer_freq"] == [0] + [1] * 60
    assert (arguments["yarn_beta_fast"], arguments["yarn_original_max_position_embeddings"]) == (1.0, 4096)
    again = config_of("deepseek_v3", arguments) | {"vocab_size": 163840}
    assert read_config(again)[1] == arguments
    with pytest.raises(CompeteError, match=r"quantization_config .* dequantize\(\)"):
        read_config(KIMI_K2 | {"quantization_config": {"quant_method": "fp8"}})


def test_groups_of_which_all_are_taken_are_none() -> None:
    for name in ("deepseek_v3", "glm4_moe"):
        arguments = gpt.ARGUMENTS | gpt.FAMILIES[name] | {"moe_router_num_groups": 1, "moe_router_group_topk": 1}
        assert choose_family(arguments) is FAMILIES[name]


def test_groups_of_a_model_that_chooses_greedily_are_not_read() -> None:
    config = config_of("deepseek_v2", gpt.ARGUMENTS | gpt.VARIANTS["deepseek_v2 with YaRN"][1])
    assert config["topk_method"] == "greedy"
    assert read_config(config | {"n_group": 1, "topk_group": 1}) == read_config(config)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("mixtral", {"sliding_window": 128}, "sliding_window 128"),
    ("mixtral", {"hidden_act": "gelu"}, "hidden_act gelu"),
    ("mixtral", {"rope_theta": 10000.5}, "rope_theta 10000.5"),
    ("mixtral", {"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
    ("llama", {"attention_bias": True}, "attention_bias True"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_parameters"),
    (
        "llama",
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 2.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            }
        },
        "rope_parameters",
    ),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}, "layer_types|sliding_window"),
    ("qwen3_moe", {"attention_bias": True}, "attention_bias True"),
    ("deepseek_v3", {"q_lora_rank": None}, "--q-lora-rank None"),
    ("deepseek_v3", {"norm_topk_prob": False}, "norm_topk_prob False"),
    ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func softmax"),
    ("deepseek_v3", {"rope_interleave": False}, "rope_interleave False"),
    ("mistral", {"sliding_window": 16}, "sliding_window 16, .* set it to null"),
    ("gpt_oss", {"attention_bias": False}, "attention_bias False"),
    ("gpt_oss", {"swiglu_alpha": 1.5}, "swiglu_alpha 1.5"),
    ("gpt_oss", {"quantization_config": {"quant_method": "mxfp4"}}, r"quantization_config .* dequantize\(\)"),
    ("deepseek_v2", {"q_lora_rank": None}, "--q-lora-rank None"),
    ("deepseek_v2", {"topk_group": 1}, "--moe-router-group-topk 1, which DeepSeek-V2 .* by their best expert"),
    ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob True"),
    ("deepseek_v2", {"scoring_func": "sigmoid"}, "scoring_func sigmoid"),
    ("glm4_moe", {"n_group": 8, "topk_group": 4}, "--moe-router-group-topk 4"),
]


@pytest.mark.parametrize(("family", "change", "message"), REFUSED)
def test_configurations_that_megatron_cannot_express(family: str, change: dict[str, Any], message: str) -> None:
    config = config_of(family, gpt.ARGUMENTS | gpt.FAMILIES[family])
    read_config(config)
    with pytest.raises(CompeteError, match=message):
        read_config(config | change)


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if not family.code])
def test_the_names_of_a_family_are_transformers(family: str) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert family in CONFIG_MAPPING
    assert MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family] == FAMILIES[family].architecture
