"""Every knob of the baseline routers.

The command line is made from this class, as from `CompeteConfig`: field `temperature` is the flag `--router-temperature`,
and the text under a field is its help. Which router reads which field stands in the registry (`moe/baselines/__init__.py`).
"""

import argparse
from dataclasses import dataclass, fields
from typing import Literal

from megatron_compete.common.config_fields import check_fields
from megatron_compete.common.errors import CompeteError

PREFIX = "router_"
"""Of a `BaselineConfig` field among parsed arguments."""


@dataclass(frozen=True)
class BaselineConfig:
    """Settings of `--router xmoe`, `cosine` and the other baselines; the defaults are their authors'."""

    temperature: float = 0.3
    """What cosines are divided by (xmoe, cosine)."""

    learn_temperature: bool = False
    """Learn the temperature, by layer, from there on (xmoe, cosine)."""

    dim: int = 0
    """Dimensions in which tokens and experts are compared (xmoe, cosine). 0: half the number of experts."""

    perturbation: float = 0.1
    """Added to the norms of token and expert in the cosine's denominator (cosine)."""

    l1_init: float = 1e-8
    """Coefficient of the first step's penalty on the router's weights (remoe)."""

    l1_factor: float = 1.2
    """Factor by which that coefficient rises or falls after each step, as tokens took more than K experts or fewer
    (remoe)."""

    usmoe_alpha: float = 0.5
    """Share of the sigmoid in the score of token and expert, beside the softmax (usmoe)."""

    threshold_decay: float = 0.99
    """Share of the running threshold that is kept at each step (usmoe, threshold)."""

    threshold_warmup: int = 1
    """Steps in which each microbatch is cut at its own threshold, as the papers' training does, with a look at later
    tokens (usmoe, threshold). 1: the first, which has no other."""

    default_decay: float = 0.9
    """Share of the experts' default vectors that is kept at each step (default-moe)."""

    default_part: Literal["output", "gradient"] = "output"
    """Where default vectors stand for the experts that were not chosen: in the layer's output, as in the paper, or in the
    gradient of the router's probabilities alone, which leaves the output without them (default-moe)."""

    def __post_init__(self) -> None:
        check_fields(self, flag_of)
        check_range(self.temperature > 0.0, "temperature", self.temperature, "give more than 0")
        check_range(self.dim >= 0, "dim", self.dim, "give 1 or more, or 0 for half the number of experts")
        check_range(self.perturbation > 0.0, "perturbation", self.perturbation, "give more than 0, or use --router xmoe")  # fmt: skip
        check_range(self.l1_init > 0.0, "l1_init", self.l1_init, "a coefficient that is multiplied: give more than 0")
        check_range(self.l1_factor > 1.0, "l1_factor", self.l1_factor, "give more than 1")
        check_range(0.0 <= self.usmoe_alpha <= 1.0, "usmoe_alpha", self.usmoe_alpha, "give a number from 0 to 1")
        check_range(0.0 <= self.threshold_decay < 1.0, "threshold_decay", self.threshold_decay, "give 0 or more, below 1")  # fmt: skip
        check_range(0.0 <= self.default_decay < 1.0, "default_decay", self.default_decay, "give 0 or more, below 1")
        check_range(self.threshold_warmup >= 1, "threshold_warmup", self.threshold_warmup, "give 1 or more")

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> "BaselineConfig":
        """The settings among parsed arguments; those that lack `--router-*` (an older checkpoint's) get the defaults."""
        names = (field.name for field in fields(cls))
        return cls(**{name: getattr(args, PREFIX + name) for name in names if hasattr(args, PREFIX + name)})


def flag_of(field: str) -> str:
    """The command-line flag of a field of `BaselineConfig`."""
    return "--router-" + field.replace("_", "-")


def check_range(holds: bool, field: str, value: object, advice: str) -> None:
    """Raise a `CompeteError` that names the field's flag unless `holds`."""
    if not holds:
        raise CompeteError(f"{flag_of(field)} {value} is out of range: {advice}")
