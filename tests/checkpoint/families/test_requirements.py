"""The tables of refusals: each argument that makes a model something else than its family is named."""

import re
from typing import Any

import pytest

from megatron_compete.checkpoint.families import FAMILIES
from megatron_compete.common.errors import CompeteError
from tests.checkpoint.gpt import ARGUMENTS, HYBRID
from tests.checkpoint.gpt import FAMILIES as MODELS
from tests.ranks import run_rank

REFUSED: list[tuple[str, Any]] = [
    ("normalization", "LayerNorm"),
    ("layernorm_zero_centered_gamma", True),
    ("add_bias_linear", True),
    ("add_qkv_bias", True),
    ("mtp_num_layers", 1),
    ("multi_latent_attention", True),
    ("hybrid_layer_pattern", "M*M*"),
    ("use_mup", True),
    ("spec", ["somewhere.else", "spec"]),
    ("qk_layernorm", True),
    ("softmax_type", "learnable"),
    ("window_size", (128, 0)),
    ("position_embedding_type", "yarn"),
    ("rotary_percent", 0.5),
    ("rotary_interleaved", True),
    ("rotary_seq_len_interpolation_factor", 4),
    ("use_rope_scaling", True),
    ("no_rope_freq", 4),
    ("swiglu", False),
    ("relu", True),
    ("squared_relu", True),
    ("activation_func_clamp_value", 7.0),
    ("glu_linear_offset", 1.0),
    ("num_experts", None),
    ("moe_layer_freq", 2),
    ("moe_layer_freq", [0, 1, 1, 1]),
    ("moe_shared_expert_intermediate_size", 64),
    ("moe_latent_size", 16),
    ("router", "xmoe"),
    ("router", "remoe"),
    ("moe_router_score_function", "sigmoid"),
    ("moe_router_pre_softmax", True),
    ("moe_router_topk_scaling_factor", 2.5),
    ("moe_router_enable_expert_bias", True),
    ("moe_router_group_topk", 2),
    ("moe_router_load_balancing_type", "sinkhorn"),
    ("moe_router_load_balancing_type", ["aux_loss", "quantile_balancing"]),
    ("moe_expert_capacity_factor", 1.25),
    ("moe_apply_probs_on_input", True),
]

ALLOWED: list[tuple[str, Any]] = [
    ("router", "compete"),
    ("moe_layer_freq", [1, 1, 1, 1]),
    ("moe_router_load_balancing_type", ["seq_aux_loss", "none"]),
    ("moe_router_topk_scaling_factor", 1.0),
    ("rotary_percent", 1),
    ("mtp_num_layers", 0),
    ("rope_type", "rope"),
    ("qk_layernorm", None),
    ("fp8", "hybrid"),
    ("moe_input_jitter_eps", 0.01),
]


def test_a_mixtral_passes() -> None:
    FAMILIES["mixtral"].check(ARGUMENTS)


@pytest.mark.parametrize(("argument", "value"), ALLOWED)
def test_what_changes_nothing_passes(argument: str, value: Any) -> None:
    FAMILIES["mixtral"].check(ARGUMENTS | {argument: value})


@pytest.mark.parametrize(("argument", "value"), REFUSED)
def test_what_mixtral_cannot_say_is_refused(argument: str, value: Any) -> None:
    rule = next(rule for rule in FAMILIES["mixtral"].requirements if rule.argument == argument)
    with pytest.raises(CompeteError) as caught:
        FAMILIES["mixtral"].check(ARGUMENTS | {argument: value})
    assert f"{rule.name} {value}" in str(caught.value)
    assert rule.reason in str(caught.value)


@pytest.mark.parametrize(
    "argument", ["normalization", "swiglu", "add_bias_linear", "position_embedding_type", "num_experts"]
)
def test_arguments_of_old_checkpoints_mean_their_defaults(argument: str) -> None:
    with pytest.raises(CompeteError):
        FAMILIES["mixtral"].check({name: value for name, value in ARGUMENTS.items() if name != argument})


OF_FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("qwen3_moe", {"qk_layernorm": False}),
    ("qwen3_moe", {"add_qkv_bias": True}),
    ("qwen2_moe", {"moe_shared_expert_gate": False}),
    ("qwen2_moe", {"moe_shared_expert_intermediate_size": None}),
    ("qwen2_moe", {"kv_channels": 12}),
    ("qwen2", {"add_qkv_bias": False}),
    ("qwen2", {"kv_channels": 12}),
    ("llama", {"num_experts": 4}),
    ("llama", {"qk_layernorm": True}),
    ("glm4_moe", {"moe_router_score_function": "softmax"}),
    ("glm4_moe", {"moe_shared_expert_intermediate_size": 50}),
    ("glm4_moe", {"moe_layer_freq": [1, 0, 1, 1]}),
    ("glm4_moe", {"moe_router_group_topk": 1}),
    ("deepseek_v3", {"multi_latent_attention": False}),
    ("deepseek_v3", {"q_lora_rank": None}),
    ("deepseek_v3", {"layernorm_epsilon": 1e-5}),
    ("deepseek_v3", {"mscale": 0.7, "rotary_scaling_factor": 4.0}),
    ("deepseek_v3", {"mscale_all_dim": 0.7, "rotary_scaling_factor": 4.0, "rope_type": "rope"}),
    ("deepseek_v2", {"moe_router_pre_softmax": False}),
    ("deepseek_v2", {"moe_router_group_topk": 1}),
    ("deepseek_v2", {"moe_router_score_function": "sigmoid"}),
    ("mistral", {"num_experts": 4}),
    ("gpt_oss", {"add_bias_linear": False}),
    ("gpt_oss", {"softmax_type": "vanilla"}),
    ("gpt_oss", {"window_size": (4, 4)}),
    ("gpt_oss", {"quick_geglu": False}),
    ("gpt_oss", {"activation_func_clamp_value": None}),
    ("gpt_oss", {"mscale": 0.7}),
    ("qwen3_next", {"layernorm_zero_centered_gamma": False}),
    ("qwen3_next", {"attention_output_gate": False}),
    ("qwen3_next", {"experimental_attention_variant": None}),
    ("competesmoe", {"multi_latent_attention": True}),
    ("competesmoe", {"add_bias_linear": True}),
    ("competesmoe", {"moe_router_enable_expert_bias": True}),
    ("competesmoe", {"quick_geglu": True}),
]


OF_HYBRID: list[dict[str, Any]] = [
    {"hybrid_layer_pattern": "MG"},
    {"hybrid_layer_pattern": "ME*-ME/ME"},
    {"hybrid_layer_pattern": None},
    {"position_embedding_type": "rope"},
    {"squared_relu": False},
    {"moe_router_score_function": "softmax"},
    {"moe_shared_expert_intermediate_size": None},
    {"untie_embeddings_and_output_weights": False},
]


@pytest.mark.parametrize("change", OF_HYBRID, ids=str)
def test_what_no_hybrid_model_of_transformers_has_is_refused(change: dict[str, Any]) -> None:
    FAMILIES["nemotron_h"].check(ARGUMENTS | HYBRID)
    argument, value = next(iter(change.items()))
    with pytest.raises(
        CompeteError, match=rf"--{argument.replace('_', '-')} {re.escape(str(value))}, which Nemotron-H cannot"
    ):
        FAMILIES["nemotron_h"].check(ARGUMENTS | HYBRID | change)


def test_what_is_said_of_experts_means_nothing_to_a_hybrid_model_without() -> None:
    FAMILIES["nemotron_h"].check(ARGUMENTS | HYBRID | {"hybrid_layer_pattern": "M*-M", "num_experts": None})


@pytest.mark.parametrize(("family", "change"), OF_FAMILIES)
def test_what_a_family_cannot_say_is_refused(family: str, change: dict[str, Any]) -> None:
    FAMILIES[family].check(ARGUMENTS | MODELS[family])
    argument, value = next(iter(change.items()))
    requirement = next(one for one in FAMILIES[family].requirements if one.argument == argument)
    with pytest.raises(CompeteError) as caught:
        FAMILIES[family].check(ARGUMENTS | MODELS[family] | change)
    assert f"trained with {requirement.name} {value}, which {FAMILIES[family].title} cannot" in str(caught.value)


def megatron_defaults() -> dict[str, Any]:
    import sys

    from megatron.training.arguments import parse_args

    sys.argv = sys.argv[:1]
    return vars(parse_args())


def test_defaults_are_megatrons() -> None:
    """A default of a table that is not Megatron's would misread a checkpoint; an unknown name checks nothing."""
    defaults = run_rank(megatron_defaults)
    elsewhere = {
        "apply_layernorm_1p",  # before 0.16: now layernorm_zero_centered_gamma
        "softmax_scale",  # a field of TransformerConfig
        "moe_router_topk_limited_devices",  # likewise
        "relu",  # of this project's trainer
        "router",  # likewise; another trainer's is Megatron's
    }
    for family in FAMILIES.values():
        for requirement in family.requirements:
            if requirement.argument not in elsewhere:
                assert requirement.default == defaults[requirement.argument], requirement.argument


@pytest.mark.parametrize("family", FAMILIES)
def test_an_argument_has_one_requirement(family: str) -> None:
    arguments = [one.argument for one in FAMILIES[family].requirements]
    assert len(set(arguments)) == len(arguments)
