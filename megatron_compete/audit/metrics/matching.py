"""Which expert of another checkpoint is which: training may have them in another order.

E experts.
"""

import torch
from torch import Tensor

from megatron_compete.audit.metrics.extra import scipy_module
from megatron_compete.common.errors import CompeteError

STAYS = 1e-6
"""Added to an expert's similarity to its own number: above the rounding of a cosine. Experts that are all alike, as
after upcycling, have not moved."""


def match_experts(similarity_EE: Tensor) -> list[int]:
    """The other checkpoint's expert for each of ours, one for each, with the largest sum of similarities.

    Args:
        similarity_EE: ours by row, the other's by column, such as cosines of weights.
    Returns:
        [E], the columns.
    Raises:
        CompeteError: similarities that are no numbers, or scipy is missing.
    """
    similarity_EE = similarity_EE.double().cpu()
    if not similarity_EE.isfinite().all():
        raise CompeteError("experts cannot be matched: weights of a checkpoint hold NaN or infinity")
    similarity_EE = similarity_EE + STAYS * torch.eye(len(similarity_EE), dtype=torch.float64)
    assign = scipy_module("optimize").linear_sum_assignment
    return [int(column) for column in assign(similarity_EE.numpy(), maximize=True)[1]]
