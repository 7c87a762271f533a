"""Ranking experts against their own mean response (not in the paper).

T tokens, E experts. Plain responses hold a static offset per expert, so that early in training the same experts win
nearly every token. A centred response is an expert's response to this token beside its others: (s - mean) / std, with
the mean and standard deviation of that expert's responses over tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

EPSILON = 1e-6
"""Added to a standard deviation: an expert with the same response to all tokens scores 0, not noise."""


@dataclass(frozen=True)
class ResponseStatistics:
    """Mean and (population) variance of every expert's responses over tokens, fp32 [E] each."""

    mean_E: Tensor
    variance_E: Tensor
    count: Tensor
    """Tokens that they are of, [1]; both are 0 where there are none."""

    def centre(self, responses_TE: Tensor) -> Tensor:
        """(s - mean) / std, [T, E]."""
        return (responses_TE - self.mean_E) / (self.variance_E.sqrt() + EPSILON)


def response_statistics(
    responses_TE: Tensor,
    valid_T: Tensor | None = None,
    gather: Callable[[Tensor], Tensor] | None = None,
) -> ResponseStatistics:
    """Statistics over the valid tokens, of all ranks if `gather` stacks a vector of every rank to [ranks, n].

    Means and squared deviations are combined as in Chan et al.'s parallel variance: summing squares would cancel,
    for responses lie close together.
    """
    values = responses_TE if valid_T is None else responses_TE[valid_T]
    count = values.new_tensor([float(values.shape[0])])
    mean_E = values.sum(dim=0) / count.clamp_min(1.0)
    deviations_E = (values - mean_E).square().sum(dim=0)
    if gather is None:
        return ResponseStatistics(mean_E, deviations_E / count.clamp_min(1.0), count)
    packed = gather(torch.cat([count, mean_E, deviations_E]))
    counts, means, deviations = packed[:, :1], *packed[:, 1:].chunk(2, dim=1)
    total = counts.sum(dim=0)
    mean_E = (counts * means).sum(dim=0) / total.clamp_min(1.0)
    deviations_E = (deviations + counts * (means - mean_E).square()).sum(dim=0)
    return ResponseStatistics(mean_E, deviations_E / total.clamp_min(1.0), total)
