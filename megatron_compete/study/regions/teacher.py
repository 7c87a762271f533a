"""The teacher: the space of inputs falls into regions, and each region has a linear map of its own.

    x ~ N(0, I_H),    region r(x) = argmax_r (G x)_r,    target y = B_r x

Rows of G have length 1; the maps B_r = U_r V_r / sqrt(H * rank) have standard normal U_r [H, rank], V_r [rank, H], so that
each target has variance 1. An expert of width 2 * rank with ReLU computes one region's map exactly: a rank needs the two
units relu(v x) and relu(-v x).

Everything is a function of the seed. N inputs, H their size (and the targets'), R regions.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

HELD_OUT, ORDER, FRESH, REGIONS, MAPS = "held-out", "order", "fresh", "regions", "maps"
STREAMS = (REGIONS, MAPS, FRESH, ORDER, HELD_OUT)
"""What is drawn, each from a stream of its own."""


@dataclass(frozen=True)
class Examples:
    """Inputs with their regions and targets."""

    inputs_NH: Tensor
    regions_N: Tensor
    targets_NH: Tensor


@dataclass(frozen=True)
class Teacher:
    """Regions and maps of one seed."""

    directions_RH: Tensor
    """G"""
    maps_RHH: Tensor
    """B, [R, outputs, inputs]"""

    @classmethod
    def of_seed(cls, seed: int, size: int, regions: int, rank: int) -> "Teacher":
        """Draw a teacher.

        Args:
            size: H, of inputs and targets.
            rank: of each region's map.
        """
        directions_RH = F.normalize(torch.randn(regions, size, generator=stream(seed, REGIONS)), dim=-1)
        random = stream(seed, MAPS)
        out_RHQ = torch.randn(regions, size, rank, generator=random)
        in_RQH = torch.randn(regions, rank, size, generator=random)
        return cls(directions_RH, out_RHQ @ in_RQH * (size * rank) ** -0.5)

    def examples(self, inputs_NH: Tensor) -> Examples:
        """The inputs with what the teacher says of them."""
        regions_N = (inputs_NH @ self.directions_RH.T).argmax(dim=-1)
        maps_NHH = self.maps_RHH[regions_N]
        return Examples(inputs_NH, regions_N, torch.einsum("noi,ni->no", maps_NHH, inputs_NH))

    def held_out(self, seed: int, count: int) -> Examples:
        """Inputs that training never sees."""
        return self.examples(torch.randn(count, self.directions_RH.shape[1], generator=stream(seed, HELD_OUT)))

    def batches(self, seed: int, size: int, samples: int | None = None) -> Iterator[Examples]:
        """Training batches of `size` inputs, without end.

        Args:
            samples: read these many inputs again and again, in another order each time; None: every input is new.
        """
        random, width = stream(seed, FRESH), self.directions_RH.shape[1]
        if samples is None:
            while True:
                yield self.examples(torch.randn(size, width, generator=random))
        whole = self.examples(torch.randn(samples, width, generator=random))
        for rows in _orders(samples, size, stream(seed, ORDER)):
            yield Examples(whole.inputs_NH[rows], whole.regions_N[rows], whole.targets_NH[rows])


def _orders(samples: int, size: int, random: torch.Generator) -> Iterator[Tensor]:
    """Rows of each batch: permutations one after another, cut into batches."""
    left = torch.empty(0, dtype=torch.int64)
    while True:
        while len(left) < size:
            left = torch.cat([left, torch.randperm(samples, generator=random)])
        yield left[:size]
        left = left[size:]


def stream(seed: int, name: str) -> torch.Generator:
    """The random numbers of one of `STREAMS`."""
    return torch.Generator().manual_seed(seed * len(STREAMS) + STREAMS.index(name))


def relative_loss(outputs_NH: Tensor, targets_NH: Tensor) -> float:
    """Squared error over the targets' variance: 0 where all is right, 1 for an answer of 0 (their mean is 0)."""
    return float((outputs_NH.double() - targets_NH.double()).square().sum() / targets_NH.double().square().sum())
