"""Functions that hand values on as they are and change what comes back in the backward pass."""

from typing import Any

import torch
from torch import Tensor


class AlsoReaching(torch.autograd.Function):
    """Values, unchanged, whose backward pass also reaches others, with a gradient of zero: losses that are attached to
    those send theirs on."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, others: Tensor) -> Tensor:
        ctx.others = others.shape, others.dtype
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        shape, dtype = ctx.others
        return grad_outputs[0], torch.zeros(shape, dtype=dtype, device=grad_outputs[0].device)


class Weighed(torch.autograd.Function):
    """Values, unchanged, whose gradient is multiplied by a scalar."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors
        return (grad_outputs[0] * factor).to(grad_outputs[0].dtype), None
