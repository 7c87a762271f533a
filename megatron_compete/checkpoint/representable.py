"""What a Mixtral model cannot say: every argument of Megatron's that would change what it computes.

Mixtral is: RMSNorm before attention and before the experts, causal attention with grouped queries and RoPE over the
whole head, a MoE in every layer, softmax router, top-K renormalised, SwiGLU experts, no bias anywhere. A checkpoint
trained otherwise is refused rather than exported as a model that is nearly the same. Arguments that only change how
training runs or rounds (fusions, recompute, FP8, dropout, losses, parallelism) are not listed.

`default` is the argument's meaning where a checkpoint does not have it: older ones lack newer arguments.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_compete.errors import CompeteError

Allowed = Callable[[Any], bool]


@dataclass(frozen=True)
class Rule:
    """One argument, the values under which Mixtral computes the same, and what is wrong with the others."""

    argument: str
    default: Any
    allowed: Allowed
    reason: str
    flag: str | None = None
    """The command-line flag where it is not the argument's name with dashes."""

    @property
    def name(self) -> str:
        """The flag, as typed."""
        return self.flag or "--" + self.argument.replace("_", "-")

    def refuses(self, arguments: Mapping[str, Any]) -> bool:
        """Whether a model trained with `arguments` is not a Mixtral on this account."""
        return not self.allowed(arguments.get(self.argument, self.default))


def _is(*values: Any) -> Allowed:
    return lambda value: any(type(value) is type(one) and value == one for one in values)


def _number(*values: float) -> Allowed:
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value in values


def _none_or(*values: float) -> Allowed:
    return lambda value: value is None or _number(*values)(value)


def _every_layer(value: Any) -> bool:
    return value == 1 if isinstance(value, int) else isinstance(value, list) and all(one == 1 for one in value)


def _balanced_by_loss(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return all(name in ("aux_loss", "seq_aux_loss", "global_aux_loss", "none") for name in names)


def _own_spec(value: Any) -> bool:
    return value is None or (isinstance(value, list) and str(value[0]).startswith("megatron_compete."))


OFF = _is(False, None)
NOT_SET = _is(None)

MIXTRAL_RULES = (
    # The block.
    Rule("normalization", "LayerNorm", _is("RMSNorm"), "Mixtral has RMSNorm alone"),
    Rule("layernorm_zero_centered_gamma", False, OFF, "Mixtral's norms do not add 1 to their weight", flag="--apply-layernorm-1p"),
    Rule("apply_layernorm_1p", False, OFF, "Mixtral's norms do not add 1 to their weight"),
    Rule("add_bias_linear", True, OFF, "Mixtral has no biases: train with --disable-bias-linear", flag="add_bias_linear"),
    Rule("apply_residual_connection_post_layernorm", False, OFF, "Mixtral adds the residual before the norm"),
    Rule("mtp_num_layers", None, _none_or(0), "Mixtral has no multi-token prediction"),
    Rule("multi_latent_attention", False, OFF, "Mixtral has grouped-query attention; latent attention is DeepSeek's"),
    Rule("experimental_attention_variant", None, NOT_SET, "Mixtral has plain attention in every layer"),
    Rule("linear_attention_freq", None, NOT_SET, "Mixtral has plain attention in every layer"),
    Rule("hybrid_layer_pattern", None, NOT_SET, "Mixtral has no Mamba layers"),
    Rule("hybrid_override_pattern", None, NOT_SET, "Mixtral has no Mamba layers"),
    Rule("is_hybrid_model", False, OFF, "Mixtral has no Mamba layers"),
    Rule("heterogeneous_layers_config_path", None, NOT_SET, "Mixtral's layers are all alike"),
    Rule("heterogeneous_layers_config_encoded_json", None, _is(None, ""), "Mixtral's layers are all alike"),
    Rule("use_mup", False, OFF, "Mixtral scales neither embeddings nor logits"),
    Rule("spec", None, _own_spec, "layers of another plugin may compute anything"),
    # Attention.
    Rule("add_qkv_bias", False, OFF, "Mixtral's projections have no bias"),
    Rule("qk_layernorm", False, OFF, "Mixtral does not normalise queries and keys"),
    Rule("qk_l2_norm", False, OFF, "Mixtral does not normalise queries and keys"),
    Rule("attention_output_gate", False, OFF, "Mixtral does not gate attention's output"),
    Rule("softmax_type", "vanilla", _is("vanilla"), "Mixtral has no attention sinks"),
    Rule("softmax_scale", None, NOT_SET, "Mixtral scales scores by 1/sqrt(head size)"),
    Rule("window_size", None, NOT_SET, "in Megatron it may cover some layers only, in Mixtral all: not exported"),
    # Positions.
    Rule("position_embedding_type", "learned_absolute", _is("rope"), "Mixtral has rotary positions"),
    Rule("rotary_percent", 1.0, _number(1.0), "Mixtral rotates the whole head"),
    Rule("rotary_interleaved", False, OFF, "Mixtral rotates the first half of a head against the second"),
    Rule("rotary_seq_len_interpolation_factor", None, _none_or(1), "Mixtral does not stretch positions"),
    Rule("use_rope_scaling", False, OFF, "Mixtral does not scale rotary frequencies"),
    Rule("rope_type", None, _is(None, "rope"), "Mixtral does not scale rotary frequencies"),
    Rule("mrope_section", None, NOT_SET, "Mixtral has positions in one dimension"),
    Rule("no_rope_freq", None, NOT_SET, "Mixtral has rotary positions in every layer"),
    # Experts.
    Rule("relu", False, OFF, "Mixtral's experts are SwiGLU, three matrices; ReLU experts have two"),
    Rule("squared_relu", False, OFF, "Mixtral's experts are SwiGLU"),
    Rule("quick_geglu", False, OFF, "Mixtral's experts are SwiGLU"),
    Rule("swiglu", False, _is(True), "Mixtral's experts are SwiGLU: train with --swiglu"),
    Rule("glu_linear_offset", 0.0, _number(0.0), "Mixtral adds nothing to the gated half"),
    Rule("activation_func_clamp_value", None, NOT_SET, "Mixtral does not limit activations"),
    Rule("moe_mlp_glu_interleave_size", None, NOT_SET, "gate and up are interleaved in these weights"),
    Rule("num_experts", None, lambda value: isinstance(value, int) and value > 0, "a dense model is not a Mixtral"),
    Rule("moe_layer_freq", 1, _every_layer, "Mixtral has experts in every layer"),
    Rule("moe_shared_expert_intermediate_size", None, _none_or(0), "Mixtral has no shared experts"),
    Rule("moe_latent_size", None, NOT_SET, "Mixtral's experts see the hidden states themselves"),
    # Routing.
    Rule("moe_router_score_function", "softmax", _is("softmax"), "Mixtral's router is a softmax"),
    Rule("moe_router_pre_softmax", False, OFF, "Mixtral's K weights sum to 1; with it they do not"),
    Rule("moe_router_topk_scaling_factor", None, _none_or(1), "Mixtral's K weights sum to 1"),
    Rule("moe_router_enable_expert_bias", False, OFF, "Mixtral ranks experts by their probability alone"),
    Rule("moe_router_num_groups", None, NOT_SET, "Mixtral chooses among all experts"),
    Rule("moe_router_group_topk", None, NOT_SET, "Mixtral chooses among all experts"),
    Rule("moe_router_topk_limited_devices", None, NOT_SET, "Mixtral chooses among all experts"),
    Rule("moe_router_load_balancing_type", "aux_loss", _balanced_by_loss, "Mixtral ranks by probability alone"),
    Rule("moe_router_force_load_balancing", False, OFF, "it routes at random, for benchmarks"),
    Rule("moe_router_force_biased", None, NOT_SET, "it routes at random, for benchmarks"),
    Rule("moe_expert_capacity_factor", None, NOT_SET, "Mixtral drops no tokens"),
    Rule("moe_expert_rank_capacity_factor", None, NOT_SET, "Mixtral drops no tokens"),
    Rule("moe_apply_probs_on_input", False, OFF, "Mixtral weights an expert's output, not its input"),
)  # fmt: skip


def check_mixtral(arguments: Mapping[str, Any]) -> None:
    """Raise a `CompeteError` that names the first argument under which the model is not exactly a Mixtral."""
    for rule in MIXTRAL_RULES:
        if rule.refuses(arguments):
            value = arguments.get(rule.argument, rule.default)
            raise CompeteError(f"trained with {rule.name} {value}, which Mixtral cannot represent: {rule.reason}")
