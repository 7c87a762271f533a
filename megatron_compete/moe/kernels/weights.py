"""Where the kernels find the weights: tables of addresses, because every expert has its own parameters.

E experts of this rank, F their width, H hidden size.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from megatron.core.transformer.moe.experts import SequentialMLP
from torch import Tensor, nn

from megatron_compete.moe.kernels.coverage import ExpertForm

_TRITON_DTYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


def triton_dtype(dtype: torch.dtype) -> tl.dtype:
    """Triton's name of a precision that the kernels know."""
    return _TRITON_DTYPES[dtype]


@dataclass(frozen=True)
class ExpertWeights:
    """The weights of E experts as the kernels take them."""

    form: ExpertForm
    precision: torch.dtype
    """Of activations and outputs; of the weights too, unless they come with scales."""
    fc1_table: Tensor
    """int64 [E]: addresses of fc1 [F or 2F, H]."""
    fc2_table: Tensor
    """int64 [E]: addresses of fc2 [H, F]."""
    fc1_scales: Tensor | None = None
    """fp32 [E, F or 2F], with e4m3 weights."""
    fc2_scales: Tensor | None = None
    """fp32 [E, H], with e4m3 weights."""
    keep: tuple[Tensor, ...] = ()
    """What the tables point into and nobody else holds."""

    @property
    def num_experts(self) -> int:
        return self.fc1_table.shape[0]

    @property
    def fp8(self) -> bool:
        return self.fc1_scales is not None


def expert_parameters(experts: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """fc1 and fc2 of each local expert, from either of Megatron's modules.

    SequentialMLP holds an MLP for each expert; TEGroupedMLP holds `weight0`, `weight1`, ... or all in one `weight`.
    """
    if isinstance(experts, SequentialMLP):
        yield from ((mlp.linear_fc1.weight, mlp.linear_fc2.weight) for mlp in experts.local_experts)
        return
    for index in range(int(experts.num_local_experts)):  # type: ignore[arg-type]
        yield _grouped_weight(experts.linear_fc1, index), _grouped_weight(experts.linear_fc2, index)


def _grouped_weight(linear: Any, index: int) -> Tensor:
    named = getattr(linear, f"weight{index}", None)
    return linear.weight[index] if named is None else named


def await_parameters(experts: nn.Module) -> None:
    """Run the forward pre-hooks of all modules inside, as Megatron's own fused experts do.

    Under `--overlap-param-gather` they wait for the gathering of a module's parameters, which are read here without a
    call of the module (upstream: `TEGroupedMLP._make_fused_impl_pre_forward_hook`).
    """
    for module in experts.modules():
        for key, hook in module._forward_pre_hooks.items():
            hook(module, (), *([{}] if key in module._forward_pre_hooks_with_kwargs else []))


def address_table(tensors: list[Tensor]) -> Tensor:
    """Their addresses, int64, on their device."""
    return torch.tensor([tensor.data_ptr() for tensor in tensors], dtype=torch.int64).to(tensors[0].device)


def stacked_table(matrices: Tensor) -> Tensor:
    """Addresses of the matrices of a contiguous tensor [E, R, C], without a copy from the host."""
    bytes_apart = matrices.stride(0) * matrices.element_size()
    return (
        torch.arange(matrices.shape[0], dtype=torch.int64, device=matrices.device) * bytes_apart + matrices.data_ptr()
    )
