"""Every knob of the rival routers.

The command line is made from this class, as from `CompeteConfig`: field `temperature` is the flag `--router-temperature`,
and the text under a field is its help. Which router reads which field stands in the registry (`moe/rivals/__init__.py`).
"""

from dataclasses import dataclass

from megatron_compete.errors import CompeteError


@dataclass(frozen=True)
class RivalConfig:
    """Settings of `--router xmoe`, `cosine` and the other rivals; the defaults are their authors'."""

    temperature: float = 0.3
    """What cosines are divided by (xmoe, cosine)."""

    learn_temperature: bool = False
    """Learn the temperature, by layer, from there on (xmoe, cosine)."""

    dim: int = 0
    """Dimensions in which tokens and experts are compared (xmoe, cosine). 0: half the number of experts."""

    perturbation: float = 0.1
    """Added to the norms of token and expert in the cosine's denominator (cosine)."""

    def __post_init__(self) -> None:
        check_range(self.temperature > 0.0, "temperature", self.temperature, "give more than 0")
        check_range(self.dim >= 0, "dim", self.dim, "give 1 or more, or 0 for half the number of experts")
        check_range(self.perturbation > 0.0, "perturbation", self.perturbation, "give more than 0, or use --router xmoe")  # fmt: skip


def flag_of(field: str) -> str:
    """The command-line flag of a field of `RivalConfig`."""
    return "--router-" + field.replace("_", "-")


def check_range(holds: bool, field: str, value: object, advice: str) -> None:
    """Raise a `CompeteError` that names the field's flag unless `holds`."""
    if not holds:
        raise CompeteError(f"{flag_of(field)} {value} is out of range: {advice}")
