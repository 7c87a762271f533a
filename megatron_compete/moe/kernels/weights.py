"""Where the kernels find the weights: tables of addresses, because every expert has its own parameters.

E experts of this rank, F their width, H hidden size.
"""

from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor

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


def address_table(tensors: list[Tensor]) -> Tensor:
    """Their addresses, int64, on their device."""
    return torch.tensor([tensor.data_ptr() for tensor in tensors], dtype=torch.int64).to(tensors[0].device)


def stacked_table(matrices: Tensor) -> Tensor:
    """Addresses of the matrices of a contiguous tensor [E, R, C], without a copy from the host."""
    bytes_apart = matrices.stride(0) * matrices.element_size()
    return (
        torch.arange(matrices.shape[0], dtype=torch.int64, device=matrices.device) * bytes_apart + matrices.data_ptr()
    )
