"""What every competing layer of a model shares: the settings, the schedule and the current step."""

from collections.abc import Callable
from functools import cached_property

from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_compete.config import CompeteConfig
from megatron_compete.schedule import CompetitionSchedule


def moe_layer_numbers(config: TransformerConfig) -> tuple[int, ...]:
    """The decoder's MoE layers, numbered from 1, after `--moe-layer-freq` (MTP layers are not among them)."""
    pattern = config.moe_layer_freq
    if isinstance(pattern, int):
        return tuple(number + 1 for number in range(config.num_layers) if number % pattern == 0)
    return tuple(number + 1 for number, is_moe in enumerate(pattern) if is_moe)


class Competition:
    """The competition of one model.

    Args:
        config: its settings.
        layer_numbers: Megatron layer numbers (from 1) of the layers that can compete, over all pipeline stages.
        current_step: returns the step in progress, counted from 0 over the whole training (not from the resume).
    """

    def __init__(self, config: CompeteConfig, layer_numbers: tuple[int, ...], current_step: Callable[[], int]) -> None:
        self.config = config
        self.layer_numbers = layer_numbers
        self.current_step = current_step
        self.schedule  # noqa: B018  an impossible schedule is an error here, not at the first step

    @cached_property
    def schedule(self) -> CompetitionSchedule:
        """The schedule over the competing layers, in the order of `layer_numbers`."""
        return CompetitionSchedule(
            num_layers=len(self.layer_numbers),
            rate=self.config.rate,
            max_active=self.config.max_active_layers,
            seed=self.config.seed,
            warmup_steps=self.config.warmup_steps,
        )

    @cached_property
    def _position(self) -> dict[int, int]:
        return {number: position for position, number in enumerate(self.layer_numbers, start=1)}

    def is_active(self, layer_number: int) -> bool:
        """Whether the layer with this Megatron number competes at the current step."""
        return self.config.enabled and self.schedule.is_active(self.current_step(), self._position[layer_number])

    def any_active(self) -> bool:
        """Whether any layer of the model, on whatever rank, competes at the current step."""
        step = self.current_step()
        return self.config.enabled and bool(self.schedule.table(step, step + 1).any())
