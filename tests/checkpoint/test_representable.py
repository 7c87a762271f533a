"""The table of refusals: a Mixtral passes, and each argument that makes it something else is named."""

from typing import Any

import pytest

from megatron_compete.checkpoint.representable import MIXTRAL_RULES, check_mixtral
from megatron_compete.errors import CompeteError
from tests.checkpoint.gpt import ARGUMENTS
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
    check_mixtral(ARGUMENTS)


@pytest.mark.parametrize(("argument", "value"), ALLOWED)
def test_what_changes_nothing_passes(argument: str, value: Any) -> None:
    check_mixtral(ARGUMENTS | {argument: value})


@pytest.mark.parametrize(("argument", "value"), REFUSED)
def test_what_mixtral_cannot_say_is_refused(argument: str, value: Any) -> None:
    rule = next(rule for rule in MIXTRAL_RULES if rule.argument == argument)
    with pytest.raises(CompeteError) as caught:
        check_mixtral(ARGUMENTS | {argument: value})
    assert f"{rule.name} {value}" in str(caught.value)
    assert rule.reason in str(caught.value)


@pytest.mark.parametrize(
    "argument", ["normalization", "swiglu", "add_bias_linear", "position_embedding_type", "num_experts"]
)
def test_arguments_of_old_checkpoints_mean_their_defaults(argument: str) -> None:
    with pytest.raises(CompeteError):
        check_mixtral({name: value for name, value in ARGUMENTS.items() if name != argument})


def megatron_defaults() -> dict[str, Any]:
    import sys

    from megatron.training.arguments import parse_args

    sys.argv = sys.argv[:1]
    return {name: value for name, value in vars(parse_args()).items() if name in {r.argument for r in MIXTRAL_RULES}}


def test_defaults_are_megatrons() -> None:
    """A default of the table that is not Megatron's would misread a checkpoint; an unknown name checks nothing."""
    defaults = run_rank(megatron_defaults)
    for rule in MIXTRAL_RULES:
        if rule.argument in defaults:
            assert rule.default == defaults[rule.argument], rule.argument
    elsewhere = {
        "apply_layernorm_1p",  # before 0.16: now layernorm_zero_centered_gamma
        "softmax_scale",  # a field of TransformerConfig
        "moe_router_topk_limited_devices",  # likewise
        "relu",  # of this project's trainer
    }
    assert {rule.argument for rule in MIXTRAL_RULES} - set(defaults) == elsewhere


def test_an_argument_has_one_rule() -> None:
    assert len({rule.argument for rule in MIXTRAL_RULES}) == len(MIXTRAL_RULES)
