"""Modules that Megatron takes from Transformer Engine where it has none of its own, made of Megatron's local ones.

Parameters have the names that Transformer Engine's modules give them, so a checkpoint is the same on both.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.extensions import transformer_engine as te
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
from megatron.core.models.hybrid import hybrid_layer_specs
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.multi_latent_attention import MLASelfAttentionSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor

from megatron_compete.launch.cpu_context import ContextParallelAttention


class LatentDotProductAttention(ContextParallelAttention):
    """Megatron's own attention, with values of another size than queries and keys, which latent attention has."""

    def __init__(
        self, *args: Any, k_channels: int | None = None, v_channels: int | None = None, **keywords: Any
    ) -> None:
        super().__init__(*args, **keywords)
        if v_channels is not None:  # the scale comes with them, and all else it takes from the tensors
            self.hidden_size_per_partition = v_channels * self.num_attention_heads_per_partition


def normalize(x: Tensor, weight: Tensor, bias: Tensor | None, config: TransformerConfig, eps: float) -> Tensor:
    """`--normalization` of the last axis; with `--apply-layernorm-1p` the weight is kept as its distance from one."""
    if config.layernorm_zero_centered_gamma:
        weight = weight + 1
    if config.normalization == "RMSNorm":
        return F.rms_norm(x, weight.shape, weight, eps)
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def _norm_parameters(
    config: TransformerConfig, hidden_size: int
) -> tuple[torch.nn.Parameter, torch.nn.Parameter | None]:
    """Weight and bias, with the values at which the norm only normalizes."""
    start = torch.zeros if config.layernorm_zero_centered_gamma else torch.ones
    weight = torch.nn.Parameter(start(hidden_size, dtype=config.params_dtype))
    bias = None
    if config.normalization == "LayerNorm":
        bias = torch.nn.Parameter(torch.zeros(hidden_size, dtype=config.params_dtype))
    for parameter in (weight, bias):
        if parameter is not None:
            _mark(parameter, config)
    return weight, bias


def _mark(parameter: Any, config: TransformerConfig) -> None:
    """`finalize_model_grads` sums the gradients of marked parameters over the tensor parallel ranks."""
    parameter.sequence_parallel = config.sequence_parallel


class ZeroCenteredNorm(torch.nn.Module):
    """The norm of `--apply-layernorm-1p`, which Megatron leaves to Transformer Engine and Apex."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.config, self.eps = config, eps
        self.weight, self.bias = _norm_parameters(config, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """[.., H] -> [.., H]"""
        return normalize(x, self.weight, self.bias, self.config, self.eps)


class NormColumnParallelLinear(ColumnParallelLinear):
    """A norm before a column parallel linear layer (upstream: `TELayerNormColumnParallelLinear`)."""

    def __init__(self, input_size: int, output_size: int, *, config: TransformerConfig, **keywords: Any) -> None:
        super().__init__(input_size, output_size, config=config, **keywords)
        self.layer_norm_weight, self.layer_norm_bias = _norm_parameters(config, input_size)

    def forward(self, input_: Tensor, *args: Any, **keywords: Any) -> Any:
        """As ColumnParallelLinear's, of the normalized input."""
        eps = self.config.layernorm_epsilon
        return super().forward(
            normalize(input_, self.layer_norm_weight, self.layer_norm_bias, self.config, eps), *args, **keywords
        )


class DuplicatedLinear(torch.nn.Module):
    """A linear layer that every tensor parallel rank has whole (upstream: `TELinear` with `parallel_mode` duplicated).

    Megatron's local specs of latent attention have a column parallel layer and gather its output in its place, which
    loses what the other ranks' heads say about the rotated part of the keys.
    """

    def __init__(
        self, input_size: int, output_size: int, *, parallel_mode: str, config: TransformerConfig,
        init_method: Callable[[Tensor], Any], bias: bool, skip_bias_add: bool, **unused: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        assert parallel_mode == "duplicated" and not bias and not skip_bias_add
        self.weight = torch.nn.Parameter(torch.empty(output_size, input_size, dtype=config.params_dtype))
        if config.perform_initialization:
            whole = torch.empty(output_size, input_size)  # in fp32, from the generator that all ranks share
            init_method(whole)
            self.weight.data.copy_(whole)
        _mark(self.weight, config)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """[.., input] -> [.., output], and no bias."""
        return F.linear(x, self.weight), None

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> Any:
        """One tensor, alike on all tensor parallel ranks."""
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(keep_vars=True), prefix, {}, sharded_offsets,
            tp_group=parallel_state.get_tensor_model_parallel_group(), dp_cp_group=metadata["dp_cp_group"],
        )  # fmt: skip


def _local_of(part: Any) -> Any:
    """The local module for one of Transformer Engine's; None where it is none."""
    pairs = (
        (te.TEColumnParallelLinear, ColumnParallelLinear),
        (te.TERowParallelLinear, RowParallelLinear),
        (te.TELayerNormColumnParallelLinear, NormColumnParallelLinear),
        (te.TELinear, DuplicatedLinear),
        (te.TENorm, WrappedTorchNorm),
        (te.TEDotProductAttention, LatentDotProductAttention),
        (hybrid_layer_specs.moe, get_moe_module_spec(use_te=False, num_experts=1, moe_grouped_gemm=False)),
    )
    return next((local for theirs, local in pairs if part is theirs), None)


def local_form(part: Any) -> Any:
    """A copy of a spec, or a part of one, with Transformer Engine's modules exchanged for local ones."""
    local = _local_of(part)
    if local is not None:
        return local
    if isinstance(part, functools.partial):
        return functools.partial(part.func, *map(local_form, part.args), **_local_values(part.keywords))
    if isinstance(part, list):
        return [local_form(one) for one in part]
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        changed = copy.copy(part)
        vars(changed).update(_local_values(vars(part)))
        return changed
    return part


def _local_values(values: dict[str, Any]) -> dict[str, Any]:
    return {name: local_form(value) for name, value in values.items()}


class FusedNormProvider(LocalSpecProvider):
    """Local modules for the specs of experimental attention variants, which ask for a norm within the linear layer."""

    def fuse_layernorm_and_linear(self) -> bool:
        """As `TESpecProvider` has it."""
        return True

    def column_parallel_layer_norm_linear(self) -> type:
        """As `TESpecProvider` has it."""
        return NormColumnParallelLinear

    def linear(self) -> type:
        """As `TESpecProvider` has it."""
        return DuplicatedLinear


def _local_provider(upstream: Callable[..., Any], config: TransformerConfig) -> Any:
    return FusedNormProvider() if config.transformer_impl == "local" else upstream(config)


def _local_self_attention(upstream: Callable[..., Any], config: TransformerConfig, backend: Any = None) -> ModuleSpec:
    """The attention of `get_gpt_layer_local_spec`, beside layers of an experimental variant."""
    if config.transformer_impl != "local":
        return upstream(config, backend)
    layer = get_gpt_layer_local_spec(
        qk_layernorm=config.qk_layernorm,
        multi_latent_attention=config.multi_latent_attention,
        normalization=config.normalization,
        qk_l2_norm=config.qk_l2_norm,
    )
    attention = layer.submodules.self_attention
    attention.metainfo["fuse_input_layernorm"] = not config.multi_latent_attention
    if not config.multi_latent_attention:
        attention.submodules.linear_qkv = NormColumnParallelLinear
    return attention


def _latent_as_fused(upstream: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
    """Megatron's local layer, in latent attention with projections and norms as Transformer Engine's layer has them.

    With --qk-layernorm a norm is part of the linear layer after it: of the up projections, or without --q-lora-rank of
    the queries' only one, where Megatron takes no other form.
    """
    layer = upstream(*args, **keywords)
    attention = layer.self_attention.submodules
    if isinstance(attention, MLASelfAttentionSubmodules):
        attention.linear_q_down_proj = attention.linear_kv_down_proj = DuplicatedLinear
        attention.q_layernorm = attention.kv_layernorm = IdentityOp
    return layer


def _fused_norms(upstream: Callable[..., Any], transformer_impl: str) -> Any:
    return FusedNormProvider() if transformer_impl == "local" else upstream(transformer_impl)


def norm_of_megatron(upstream: Callable[..., Any], cls: type, config: Any, *args: Any, **kwargs: Any) -> Any:
    """Megatron's torch norm refuses sequence parallelism, for which it lacks nothing but the mark on its weights, and
    weights that are kept as their distance from one."""
    if config.layernorm_zero_centered_gamma:
        return ZeroCenteredNorm(config, *args, **kwargs)
    plain = copy.copy(config)
    plain.sequence_parallel = False
    norm = upstream(cls, plain, *args, **kwargs)
    for parameter in norm.parameters():
        _mark(parameter, config)
    return norm


LOCAL_HYBRID = local_form(hybrid_layer_specs.hybrid_stack_spec)
REPLACED: dict[str, Any] = {
    "megatron.core.models.backends:DotProductAttention": LatentDotProductAttention,
    "megatron.core.models.hybrid.hybrid_layer_specs:hybrid_stack_spec": LOCAL_HYBRID,
    "megatron.training.models.hybrid:default_hybrid_stack_spec": LOCAL_HYBRID,
    "megatron.core.models.hybrid.hybrid_block:TENorm": WrappedTorchNorm,
    "megatron.core.transformer.attention:TENorm": WrappedTorchNorm,
    "megatron.core.transformer.multi_latent_attention:TELinear": DuplicatedLinear,
    "megatron.core.transformer.experimental_attention_variant.absorbed_mla:TELinear": DuplicatedLinear,
}
WRAPPED: dict[str, Callable[..., Any]] = {
    "megatron.core.models.gpt.gpt_layer_specs:get_gpt_layer_local_submodules": _latent_as_fused,
    "megatron.core.transformer.mla_qk_norm_config:get_backend": _fused_norms,
    "megatron.core.transformer.torch_norm:WrappedTorchNorm.__new__": norm_of_megatron,
    "megatron.core.models.gpt.experimental_attention_variant_module_specs:_get_backend_spec_provider": _local_provider,
    "megatron.core.models.gpt.experimental_attention_variant_module_specs:_get_self_attention_module_spec": _local_self_attention,
}
"""What is replaced, or asked in another way, on a host without CUDA."""
