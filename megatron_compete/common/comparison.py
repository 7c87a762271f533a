"""How far numbers are apart, for every check that says "the same": it fails on what it cannot compare.

A check of `max`, `<=` and `all` passes there: Python's `max(0.0, nan)` is 0, `nan > limit` is false, an infinity equals
another, and all of nothing holds.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_compete.common.errors import CompeteError

Numbers = Tensor | Sequence[float]


def largest_difference(found: Numbers, wanted: Numbers, what: str) -> float:
    """The largest absolute difference, in fp32 or wider.

    Args:
        found: a tensor, or a list of numbers.
        wanted: of the same shape.
        what: their name in an error.
    Raises:
        CompeteError: shapes differ, there is nothing to compare, or a value is infinite or not a number.
    """
    one, other = (_wide(torch.as_tensor(values).detach()) for values in (found, wanted))
    if one.shape != other.shape:
        raise CompeteError(f"{what}: the shapes {tuple(one.shape)} and {tuple(other.shape)} cannot be compared")
    if not one.numel():
        raise CompeteError(f"{what}: there is nothing to compare")
    for values in (one, other):
        check_finite(values, what)
    return float((one - other).abs().max())


def relative_difference(found: Numbers, wanted: Numbers, what: str) -> float:
    """`largest_difference` as a part of the largest absolute value that is wanted.

    Raises:
        CompeteError: see there, or nothing but zeros is wanted.
    """
    apart, scale = largest_difference(found, wanted, what), float(torch.as_tensor(wanted).detach().abs().max())
    if not scale:
        raise CompeteError(f"{what}: nothing but zeros is wanted, to which nothing is relative")
    return apart / scale


def check_finite(values: Tensor, what: str) -> None:
    """Raise a `CompeteError` that counts the values that are infinite or not numbers."""
    broken = values.numel() - int(values.isfinite().sum())
    if broken:
        raise CompeteError(f"{what}: {broken} of {values.numel()} values are infinite or not numbers")


def _wide(values: Tensor) -> Tensor:
    return (
        values.to(torch.promote_types(values.dtype, torch.float32)) if values.is_floating_point() else values.double()
    )
