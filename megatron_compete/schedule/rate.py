"""How often a layer competes, as a function of the step."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import flag_of

LEAST_MAX_ACTIVE = 3
"""A_max of arXiv 2505.13380, whose models have up to 27 layers."""

Decay = Literal["none", "linear", "cosine"]


def default_max_active(rate: float, num_layers: int) -> int:
    """A_max where none is given: the authors', or as many as let every one of these layers compete at this rate."""
    return max(LEAST_MAX_ACTIVE, math.ceil(rate * num_layers - 1e-9))


@dataclass(frozen=True)
class RateCurve:
    """The rate of competition over the steps after warm-up: `rate` at first, `floor` once it has decayed.

    Args:
        rate: fraction of the steps at which a layer competes, in [0, 1].
        decay: how it falls.
        decay_steps: steps after warm-up over which it falls.
        floor: rate from there on, in [0, rate].
    Raises:
        CompeteError: a value out of range, or one that would have no effect.
    """

    rate: float
    decay: Decay = "none"
    decay_steps: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.rate <= 1.0:
            raise CompeteError(f"{flag_of('rate')} {self.rate} is out of range: give a number from 0 to 1")
        if self.decay == "none":
            if self.decay_steps or self.floor:
                name, value = ("rate_decay_steps", self.decay_steps) if self.decay_steps else ("rate_floor", self.floor)
                raise CompeteError(
                    f"{flag_of(name)} {value} changes nothing without {flag_of('rate_decay')}: give linear or cosine"
                )
            return
        if self.decay_steps < 1:
            raise CompeteError(
                f"{flag_of('rate_decay')} {self.decay} needs {flag_of('rate_decay_steps')}, 1 or more: "
                f"got {self.decay_steps}"
            )
        if not 0.0 <= self.floor <= self.rate:
            raise CompeteError(
                f"{flag_of('rate_floor')} {self.floor} is out of range: give a number from 0 to "
                f"{flag_of('rate')} {self.rate}"
            )

    def competitions(self, since_warmup: NDArray[np.int64]) -> NDArray[np.float64]:
        """Competitions of one layer expected in so many steps since warm-up: the integral of the rate."""
        steps: NDArray[np.float64] = since_warmup.astype(np.float64)
        if self.decay == "none":
            return self.rate * steps
        falling = np.minimum(steps, self.decay_steps)
        above_floor = self.rate - self.floor
        if self.decay == "linear":
            extra = above_floor * (falling - falling**2 / (2 * self.decay_steps))
        else:
            wave = self.decay_steps / math.pi * np.sin(math.pi * falling / self.decay_steps)
            extra = above_floor * (falling + wave) / 2
        return np.asarray(self.floor * steps + extra)
