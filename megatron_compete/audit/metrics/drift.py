"""How far weights have moved."""

import torch
from torch import Tensor

from megatron_compete.common.errors import CompeteError
from megatron_compete.routing.precision import at_least_fp32

ENTRIES = 2**18
"""Whose squares are summed in fp32; the sum of these sums is in fp64."""


def relative_drift(weights: Tensor, others: Tensor) -> float:
    """Norm of the difference over the norm of `others`; 0 where they are the same.

    Where the others are all 0, as a router may begin, there is no scale: 1 then, unless the weights are 0 too.

    Args:
        weights: any shape and float dtype.
        others: the same shape; of the checkpoint that is compared to.
    Raises:
        CompeteError: they have other shapes.
    """
    if weights.shape != others.shape:
        raise CompeteError(
            f"weights of {list(weights.shape)} cannot be compared to {list(others.shape)}: compare checkpoints of one model"
        )
    difference = norm = torch.zeros((), dtype=torch.float64, device=weights.device)
    for piece, other_piece in zip(weights.reshape(-1).split(ENTRIES), others.reshape(-1).split(ENTRIES)):
        other = at_least_fp32(other_piece)
        moved = at_least_fp32(piece) - other
        difference = difference + moved.dot(moved)
        norm = norm + other.dot(other)
    if float(norm) == 0:
        return float(float(difference) > 0)
    return float((difference / norm).sqrt())
