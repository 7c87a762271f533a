"""The precision that reductions run in."""

import torch
from torch import Tensor


def at_least_fp32(values: Tensor) -> Tensor:
    """`values` in fp32, or in fp64 if that is what they are (the references in the tests run in fp64)."""
    return values if values.dtype == torch.float64 else values.float()
