"""TransformerConfigs of a vision-language model's parts, from the one that Megatron makes of all arguments.

Tower and projector are transformers of their own: layer norm, biases, no dropout, whole on the first pipeline stage. What
they take from the language model's settings is listed here; everything else (rotary embeddings, grouped queries, latent
attention, shared experts, FP8) is the language model's alone.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from megatron.core.activations import quick_gelu
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_compete.common.errors import CompeteError
from megatron_compete.vlm.config import Part, VisionConfig, flag_of
from megatron_compete.vlm.validation import broken_experts

INHERITED = (
    "params_dtype", "fp16", "bf16", "enable_autocast", "autocast_dtype", "perform_initialization",
    "use_cpu_initialization", "init_model_with_meta_device", "deterministic_mode", "batch_invariant_mode",
    "disable_bf16_reduced_precision_matmul", "gradient_accumulation_fusion", "use_te_rng_tracker", "transformer_impl",
    "attention_backend", "attention_softmax_in_fp32", "masked_softmax_fusion", "calculate_per_token_loss",
)  # fmt: skip
"""Of any part: precision, initialization, implementation."""

OF_EXPERTS = (
    "expert_model_parallel_size", "expert_tensor_parallel_size", "moe_grouped_gemm", "moe_token_dispatcher_type",
    "moe_flex_dispatcher_backend", "moe_flex_dispatcher_num_sms", "moe_permute_fusion", "moe_router_fusion",
    "moe_router_load_balancing_type", "moe_aux_loss_coeff", "moe_z_loss_coeff", "moe_input_jitter_eps",
    "moe_router_score_function", "moe_router_pre_softmax", "moe_router_topk_scaling_factor", "moe_router_dtype",
    "moe_router_num_groups", "moe_router_group_topk", "moe_router_enable_expert_bias", "moe_router_bias_update_rate",
    "moe_router_quantile_balancing_ema", "moe_router_force_load_balancing", "moe_router_force_biased",
    "moe_expert_capacity_factor", "moe_pad_expert_input_to_capacity", "moe_token_drop_policy", "moe_per_layer_logging",
)  # fmt: skip
"""Of a part with experts: how they route, and where they lie."""

RECOMPUTED = ("core_attn", "mlp", "moe", "moe_act", "layernorm")
"""Modules of `--recompute-modules` that a tower has."""


def gelu_tanh(values: Tensor) -> Tensor:
    """SigLIP's activation (transformers: `gelu_pytorch_tanh`)."""
    return F.gelu(values, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"clip": quick_gelu, "siglip": gelu_tanh}
"""Of a tower, by `--vision-model-type`."""


def language_transformer(base: TransformerConfig, settings: VisionConfig) -> TransformerConfig:
    """The language model's; dense unless `--experts-in` names it."""
    config = copy.copy(base)
    if "language" not in settings.experts_in:
        config.num_moe_experts = config.moe_ffn_hidden_size = None
        config.expert_model_parallel_size = 1
    return config


def tower_transformer(base: TransformerConfig, settings: VisionConfig) -> TransformerConfig:
    """The vision tower's, with `vision_model_type` as LLaVAModel wants it.

    Raises:
        CompeteError: experts that cannot be laid out so, or a recomputation without effect.
    """
    assert settings.model_type and settings.num_layers and settings.hidden_size
    width = settings.ffn_hidden_size or 4 * settings.hidden_size
    config = _transformer(
        base, settings, "vision", width,
        num_layers=settings.num_layers, hidden_size=settings.hidden_size,
        num_attention_heads=settings.num_attention_heads, layernorm_epsilon=settings.epsilon,
        activation_func=ACTIVATIONS[settings.model_type],
    )  # fmt: skip
    config.vision_model_type = settings.model_type
    return config


def projector_transformer(base: TransformerConfig, settings: VisionConfig) -> TransformerConfig:
    """The projector's; `hidden_size` is that of its output, as in Megatron's.

    Experts get their tokens by all-to-all whatever `--moe-token-dispatcher-type` says: the others take what experts give
    to be as wide as what they get.

    Raises:
        CompeteError: experts that cannot be laid out so.
    """
    width = settings.projector_ffn_hidden_size or base.hidden_size
    config = _transformer(
        base, settings, "projector", width,
        num_layers=1, hidden_size=base.hidden_size, num_attention_heads=1, activation_func=F.gelu,
    )  # fmt: skip
    config.moe_token_dispatcher_type = "alltoall"
    return config


def model_transformer(language: TransformerConfig, *vision: TransformerConfig) -> TransformerConfig:
    """What Megatron's schedule is to take for the whole model's: the language model's, with experts where any part has.

    The schedule scales auxiliary losses by the number of microbatches only where it finds experts here (upstream:
    `forward_step_calc_loss`).
    """
    config = copy.copy(language)
    with_experts = [part for part in (language, *vision) if part.num_moe_experts]
    if with_experts:
        config.num_moe_experts = max(part.num_moe_experts for part in with_experts)
        config.expert_model_parallel_size = with_experts[0].expert_model_parallel_size
    return config


def _transformer(base: TransformerConfig, settings: VisionConfig, part: Part, width: int, **own: Any) -> TransformerConfig:  # fmt: skip
    std = base.init_method_std if settings.init_method_std is None else settings.init_method_std
    values = {name: getattr(base, name) for name in INHERITED}
    if base.num_moe_experts and part in settings.experts_in:
        values |= _experts(base, settings, part, width)
    if settings.recompute:
        values |= _recomputation(base)
    return TransformerConfig(
        **values, **own, ffn_hidden_size=width, init_method_std=std, hidden_dropout=0.0, attention_dropout=0.0,
        add_bias_linear=True, normalization="LayerNorm", bias_activation_fusion=False, bias_dropout_fusion=False,
    )  # fmt: skip


def _experts(base: TransformerConfig, settings: VisionConfig, part: Part, width: int) -> dict[str, Any]:
    """Settings of a part with experts, each as wide as the MLP of a dense one."""
    experts, top_k = settings.num_experts or base.num_moe_experts, settings.router_topk or base.moe_router_topk
    for rule in broken_experts(part, experts, top_k, base.expert_model_parallel_size, base.moe_router_num_groups):
        raise CompeteError(rule)
    inherited = {name: getattr(base, name) for name in OF_EXPERTS}
    return inherited | {"num_moe_experts": experts, "moe_router_topk": top_k, "moe_ffn_hidden_size": width}


def _recomputation(base: TransformerConfig) -> dict[str, Any]:
    """The language model's recomputation, of what a tower has.

    Raises:
        CompeteError: there is none, or none of a tower's modules.
    """
    flag, granularity = flag_of("recompute"), base.recompute_granularity
    if granularity is None:
        raise CompeteError(f"{flag} has no effect without --recompute-granularity: give it, or leave {flag} out")
    values = {"recompute_granularity": granularity, "distribute_saved_activations": base.distribute_saved_activations}
    if granularity == "full":
        return values | {name: getattr(base, name) for name in ("recompute_method", "recompute_num_layers")}
    modules = [module for module in base.recompute_modules or () if module in RECOMPUTED]
    if not modules:
        raise CompeteError(
            f"{flag} has no effect with --recompute-modules {' '.join(base.recompute_modules or ())}: name one of "
            f"{', '.join(RECOMPUTED)}, or leave {flag} out"
        )
    return values | {"recompute_modules": modules}
