"""What every competing layer of a model shares: the settings, the schedule and the current step."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

from megatron.core.transformer.enums import LayerType
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_compete.config import CompeteConfig
from megatron_compete.schedule import CompetitionSchedule
from megatron_compete.schedule.balanced import StageChunk


def moe_layer_numbers(config: TransformerConfig) -> tuple[int, ...]:
    """The decoder's MoE layers, numbered from 1, after `--moe-layer-freq` (MTP layers are not among them)."""
    pattern = config.moe_layer_freq
    if isinstance(pattern, int):
        return tuple(number + 1 for number in range(config.num_layers) if number % pattern == 0)
    return tuple(number + 1 for number, is_moe in enumerate(pattern) if is_moe)


def moe_stage_chunks(config: TransformerConfig) -> tuple[StageChunk, ...]:
    """Pipeline stage and model chunk, from 0, of each layer that can compete, in order of depth."""
    of_decoder = decoder_stage_chunks(config)
    return tuple(of_decoder[number - 1] for number in moe_layer_numbers(config))


def decoder_stage_chunks(config: TransformerConfig) -> tuple[StageChunk, ...]:
    """Pipeline stage and model chunk of each decoder layer, in order of depth: uneven stages, virtual stages and custom
    layouts included."""
    stages = range(config.pipeline_model_parallel_size)
    chunks = range(config.virtual_pipeline_model_parallel_size or 1)
    return tuple(
        (stage, chunk) for chunk in chunks for stage in stages for _ in range(_num_layers(config, stage, chunk))
    )


def _num_layers(config: TransformerConfig, stage: int, chunk: int) -> int:
    layout = config.pipeline_model_parallel_layout
    if layout is not None:  # upstream's own count asks the running process for its stage
        return layout.layout[stage][chunk].count(LayerType.decoder)
    virtual = config.virtual_pipeline_model_parallel_size is not None
    return get_num_layers_to_build(config, vp_stage=chunk if virtual else None, pp_rank=stage)


class Competition:
    """The competition of one model.

    Args:
        config: its settings.
        layer_numbers: Megatron layer numbers (from 1) of the layers that can compete, over all pipeline stages.
        current_step: returns the step in progress, counted from 0 over the whole training (not from the resume).
        stage_chunks: pipeline stage and model chunk of each of these layers; None: there is one stage.
    """

    def __init__(
        self,
        config: CompeteConfig,
        layer_numbers: tuple[int, ...],
        current_step: Callable[[], int],
        stage_chunks: tuple[StageChunk, ...] | None = None,
    ) -> None:
        self.config = config
        self.layer_numbers = layer_numbers
        self.current_step = current_step
        self.schedule = CompetitionSchedule.of(config, stage_chunks or ((0, 0),) * len(layer_numbers))

    @classmethod
    def of_model(
        cls, config: CompeteConfig, transformer: TransformerConfig, current_step: Callable[[], int]
    ) -> "Competition":
        """The competition of the MoE layers of a decoder, in its pipeline layout."""
        return cls(config, moe_layer_numbers(transformer), current_step, moe_stage_chunks(transformer))

    def follow(self, settings: dict[str, Any]) -> None:
        """Continue the schedule with these `CompetitionSchedule.settings` instead."""
        self.schedule = CompetitionSchedule.from_settings(settings)

    @cached_property
    def _position(self) -> dict[int, int]:
        return {number: position for position, number in enumerate(self.layer_numbers, start=1)}

    def is_active(self, layer_number: int) -> bool:
        """Whether the layer with this Megatron number competes at the current step."""
        return self.config.enabled and self.schedule.is_active(self.current_step(), self._position[layer_number])

    def num_active(self) -> int:
        """Layers of the whole model, on whatever rank, that compete at the current step."""
        step = self.current_step()
        return int(self.schedule.table(step, step + 1).sum()) if self.config.enabled else 0
