"""Every argument of Megatron's that changes what a model computes, and the values that an architecture can express.

`BLOCK` is the plain decoder: RMSNorm before attention and before the MLP, causal attention with grouped queries and
RoPE over the whole head, SwiGLU, no bias. `EXPERTS` is the plain mixture: softmax router, top-K renormalised, routed
experts alone. A family takes a table and says where it differs. A checkpoint trained otherwise is refused rather than
exported as a model that is nearly the same. Arguments that only change how training runs or rounds (fusions,
recompute, FP8, dropout, losses, parallelism) are not listed.

`default` is the argument's meaning where a checkpoint does not have it: older ones lack newer arguments.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

Allowed = Callable[[Any], bool]
Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Requirement:
    """One argument, the values that can be expressed, and what is wrong with the others."""

    argument: str
    default: Any
    allowed: Allowed
    reason: str
    """Completes "which <family> cannot represent: "; `it` is the family."""
    flag: str | None = None
    """The command-line flag where it is not the argument's name with dashes."""
    where: Callable[[Arguments], bool] | None = None
    """Of a value that depends on others: whether they go together, beside `allowed`."""

    @property
    def name(self) -> str:
        """The flag, as typed."""
        return self.flag or "--" + self.argument.replace("_", "-")

    def refuses(self, arguments: Arguments) -> bool:
        """Whether a model trained with `arguments` cannot be expressed on this account."""
        fits = self.allowed(arguments.get(self.argument, self.default))
        return not (fits and (self.where is None or self.where(arguments)))

    def found(self, arguments: Arguments) -> str:
        """Flag and value, for a message."""
        return f"{self.name} {arguments.get(self.argument, self.default)}"


def one_of(*values: Any) -> Allowed:
    """These values, of these types."""
    return lambda value: any(type(value) is type(one) and value == one for one in values)


def number(*values: float) -> Allowed:
    """These numbers, whether int or float."""
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value in values


def none_or(*values: float) -> Allowed:
    """Not set, or these numbers."""
    return lambda value: value is None or number(*values)(value)


def anything(value: Any) -> bool:
    """Every value."""
    return True


OFF = one_of(False, None)
ON = one_of(True)
SWITCH = one_of(True, False, None)
NOT_SET = one_of(None)


def positive(value: Any) -> bool:
    """A number above zero."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def positive_number(value: Any) -> bool:
    """A number above zero, whole or not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def positive_or_none(value: Any) -> bool:
    """Not set, or a number that is not negative."""
    return value is None or (isinstance(value, int) and value >= 0)


def fraction(value: Any) -> bool:
    """A part of a whole, or the whole."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1


def _every_layer(value: Any) -> bool:
    return value == 1 if isinstance(value, int) else isinstance(value, list) and all(one == 1 for one in value)


def dense_first(value: Any) -> bool:
    """--moe-layer-freq with some dense layers first and experts in all that follow."""
    return value == 1 if isinstance(value, int) else isinstance(value, list) and value == sorted(value)


def _balanced_by_loss(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return all(name in ("aux_loss", "seq_aux_loss", "global_aux_loss", "none") for name in names)


def _own_spec(value: Any) -> bool:
    return value is None or (isinstance(value, list) and str(value[0]).startswith("megatron_compete."))


def head_is_hidden_over_heads(arguments: Arguments) -> bool:
    """Whether the head size is the one that follows from the others."""
    head = arguments.get("kv_channels")
    return not head or head * arguments["num_attention_heads"] == arguments["hidden_size"]


QK_NORM = Requirement("qk_layernorm", False, ON, "it normalises queries and keys: train with --qk-layernorm")
DERIVED_HEAD = Requirement(
    "kv_channels", None, anything, "its head size is the hidden size over the number of heads",
    where=head_is_hidden_over_heads,
)  # fmt: skip
"""Of architectures whose config.json has no head size."""

BLOCK = (
    Requirement("normalization", "LayerNorm", one_of("RMSNorm"), "it has RMSNorm alone"),
    Requirement("layernorm_zero_centered_gamma", False, OFF, "its norms do not add 1 to their weight", flag="--apply-layernorm-1p"),
    Requirement("apply_layernorm_1p", False, OFF, "its norms do not add 1 to their weight"),
    Requirement("add_bias_linear", True, OFF, "it has no biases there: train with --disable-bias-linear", flag="add_bias_linear"),
    Requirement("apply_residual_connection_post_layernorm", False, OFF, "it adds the residual before the norm"),
    Requirement("mtp_num_layers", None, none_or(0), "it has no multi-token prediction: --drop-mtp leaves it out"),
    Requirement("mtp_use_repeated_layer", False, OFF, "its layers for multi-token prediction are not one repeated"),
    Requirement("experimental_attention_variant", None, NOT_SET, "it has plain attention in every layer"),
    Requirement("linear_attention_freq", None, NOT_SET, "it has plain attention in every layer"),
    Requirement("hybrid_layer_pattern", None, NOT_SET, "it has no Mamba layers"),
    Requirement("hybrid_override_pattern", None, NOT_SET, "it has no Mamba layers"),
    Requirement("is_hybrid_model", False, OFF, "it has no Mamba layers"),
    Requirement("heterogeneous_layers_config_path", None, NOT_SET, "its layers are all alike"),
    Requirement("heterogeneous_layers_config_encoded_json", None, one_of(None, ""), "its layers are all alike"),
    Requirement("use_mup", False, OFF, "it scales neither embeddings nor logits"),
    Requirement("spec", None, _own_spec, "layers of another plugin may compute anything"),
    # Attention.
    Requirement("multi_latent_attention", False, OFF, "it has grouped-query attention; latent attention is DeepSeek's"),
    Requirement("kv_channels", None, anything, "any"),
    Requirement("add_qkv_bias", False, OFF, "its queries, keys and values have no bias"),
    Requirement("qk_layernorm", False, OFF, "it does not normalise queries and keys"),
    Requirement("qk_l2_norm", False, OFF, "it does not normalise queries and keys by their length"),
    Requirement("attention_output_gate", False, OFF, "it does not gate attention's output"),
    Requirement("softmax_type", "vanilla", one_of("vanilla"), "it has no attention sinks"),
    Requirement("softmax_scale", None, NOT_SET, "it scales scores by 1/sqrt(head size)"),
    Requirement("window_size", None, NOT_SET, "in Megatron it may cover some layers only: not exported"),
    # Positions.
    Requirement("position_embedding_type", "learned_absolute", one_of("rope"), "it has rotary positions"),
    Requirement("rotary_percent", 1.0, number(1.0), "it rotates the whole head"),
    Requirement("rotary_interleaved", False, OFF, "it rotates the first half of a head against the second"),
    Requirement("rotary_seq_len_interpolation_factor", None, none_or(1), "it does not stretch positions"),
    Requirement("use_rope_scaling", False, OFF, "it does not scale rotary frequencies"),
    Requirement("rope_type", None, one_of(None, "rope"), "it does not scale rotary frequencies"),
    Requirement("mrope_section", None, NOT_SET, "it has positions in one dimension"),
    Requirement("no_rope_freq", None, NOT_SET, "it has rotary positions in every layer"),
    # MLP.
    Requirement("relu", False, OFF, "its MLPs are SwiGLU, three matrices; ReLU ones have two"),
    Requirement("squared_relu", False, OFF, "its MLPs are SwiGLU"),
    Requirement("quick_geglu", False, OFF, "its MLPs are SwiGLU"),
    Requirement("swiglu", False, ON, "its MLPs are SwiGLU: train with --swiglu"),
    Requirement("glu_linear_offset", 0.0, number(0.0), "it adds nothing to the gated half"),
    Requirement("activation_func_clamp_value", None, NOT_SET, "it does not limit activations"),
)  # fmt: skip
"""A decoder's block, whatever its MLP."""

EXPERTS = (
    Requirement("num_experts", None, positive, "it has experts, and this model has none"),
    Requirement("moe_mlp_glu_interleave_size", None, NOT_SET, "gate and up are interleaved in these weights"),
    Requirement("moe_shared_expert_glu_interleave_size", None, NOT_SET, "gate and up are interleaved in these weights"),
    Requirement("moe_layer_freq", 1, _every_layer, "it has experts in every layer"),
    Requirement("moe_shared_expert_intermediate_size", None, none_or(0), "it has no shared experts"),
    Requirement("moe_shared_expert_gate", False, OFF, "it has no gate before shared experts"),
    Requirement("moe_latent_size", None, NOT_SET, "its experts see the hidden states themselves"),
    Requirement("router", "topk", one_of("topk", "compete"), "its router is a linear map and a top-K; other routers have no form there"),
    Requirement("moe_router_score_function", "softmax", one_of("softmax"), "its router is a softmax"),
    Requirement("moe_router_pre_softmax", False, OFF, "its K weights sum to 1; with it they do not"),
    Requirement("moe_router_topk_scaling_factor", None, none_or(1), "its K weights sum to 1"),
    Requirement("moe_router_enable_expert_bias", False, OFF, "it ranks experts by their probability alone"),
    Requirement("moe_router_num_groups", None, NOT_SET, "it chooses among all experts"),
    Requirement("moe_router_group_topk", None, NOT_SET, "it chooses among all experts"),
    Requirement("moe_router_topk_limited_devices", None, NOT_SET, "it chooses among all experts"),
    Requirement("moe_router_load_balancing_type", "aux_loss", _balanced_by_loss, "it ranks by the router's scores alone"),
    Requirement("moe_router_force_load_balancing", False, OFF, "it does not route at random; that is for benchmarks"),
    Requirement("moe_router_force_biased", None, NOT_SET, "it does not route at random; that is for benchmarks"),
    Requirement("moe_expert_capacity_factor", None, NOT_SET, "it drops no tokens"),
    Requirement("moe_expert_rank_capacity_factor", None, NOT_SET, "it drops no tokens"),
    Requirement("moe_apply_probs_on_input", False, OFF, "it weights an expert's output, not its input"),
)  # fmt: skip
"""A mixture of experts."""

DENSE = (
    Requirement("num_experts", None, none_or(0), "it has no experts"),
)  # fmt: skip
"""A decoder without experts: what else is said about experts means nothing."""


def changed(table: tuple[Requirement, ...], *changes: Requirement) -> tuple[Requirement, ...]:
    """`table` with each of `changes` in the place of the requirement on the same argument."""
    by_name = {one.argument: one for one in changes}
    unknown = by_name.keys() - {one.argument for one in table}
    if unknown:
        raise AssertionError(f"no requirement on {', '.join(sorted(unknown))} to change")
    return tuple(by_name.get(one.argument, one) for one in table)


def allow(table: tuple[Requirement, ...], **allowed: Allowed) -> tuple[Requirement, ...]:
    """`table` with other values allowed; default, flag and reason stay."""
    found = {one.argument: one for one in table}
    return changed(table, *(replace(found[name], allowed=values) for name, values in allowed.items()))


def best_of_group(arguments: Arguments) -> int | None:
    """By how many of its best experts Megatron ranks a group (upstream: `group_limited_topk`); None where all are taken."""
    groups, chosen = (arguments.get(f"moe_router_{name}") for name in ("num_groups", "group_topk"))
    if not chosen or chosen == groups:
        return None
    return int(arguments.get("moe_router_topk") or 2) // int(chosen)


SHARED_EXPERTS = Requirement(
    "moe_shared_expert_intermediate_size", None, positive,
    "it has shared experts, as wide as some whole number of routed ones",
    where=lambda a: not a["moe_shared_expert_intermediate_size"] % (a.get("moe_ffn_hidden_size") or a["ffn_hidden_size"]),
)  # fmt: skip
GROUPS = Requirement(
    "moe_router_group_topk", None, positive_or_none, "it ranks groups by the sum of their two best experts, Megatron by "
    "--moe-router-topk over --moe-router-group-topk of them: two are exact",
    where=lambda a: best_of_group(a) in (None, 2),
)  # fmt: skip
SIGMOID = changed(
    allow(
        EXPERTS,
        moe_router_pre_softmax=SWITCH,  # means nothing to sigmoid scores
        moe_router_topk_scaling_factor=anything,
        moe_router_enable_expert_bias=SWITCH,
        moe_router_num_groups=positive_or_none,
    ),
    Requirement("moe_router_score_function", "softmax", one_of("sigmoid"), "its router is a sigmoid"),
    Requirement("moe_layer_freq", 1, dense_first, "it has experts in all layers but some first ones"),
    SHARED_EXPERTS,
    GROUPS,
)
"""A mixture as DeepSeek-V3's: sigmoid scores, shared experts, score-correction bias, choice among groups."""
