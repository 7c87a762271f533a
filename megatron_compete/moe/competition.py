"""What every competing layer of a model shares: the settings, the schedule and the current step."""

import copy
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

from megatron.core.models.hybrid.hybrid_layer_allocation import Symbols, parse_hybrid_pattern
from megatron.core.transformer.enums import LayerType
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig
from megatron_compete.schedule import CompetitionSchedule
from megatron_compete.schedule.balanced import StageChunk


class CompetingLayer(NamedTuple):
    """A layer that can compete, and where it is built."""

    number: int
    """The `layer_number` of its modules, from 1, counted over all parts of the model."""
    stage_chunk: StageChunk
    """Pipeline stage and model chunk, from 0."""


class ModelPart(NamedTuple):
    """A stack of a model's layers that has settings of its own: a decoder, or a vision tower before it."""

    transformer: TransformerConfig
    layers_before: int = 0
    """Layers of the parts before it, with experts or without: its layer 1 is the model's `layers_before + 1`."""


def parts_of(model: Any) -> tuple[ModelPart, ...]:
    """The parts of a model, in the order in which a token passes them: those of `model.parts()`, where it has several."""
    if hasattr(model, "parts"):
        parts: tuple[ModelPart, ...] = model.parts()
        return parts
    return (ModelPart(transformer_of(model)),)


def competing_layers(model: Any, hybrid_layer_pattern: str | None = None) -> tuple[CompetingLayer, ...]:
    """The MoE layers of all parts, in order of depth. Those of multi-token prediction are not among them.

    Args:
        model: a TransformerConfig, or a configuration that has one in `transformer` (upstream: `GPTModelConfig` and
            `HybridModelConfig` of `megatron.training.models`), or one that has several `parts()`.
        hybrid_layer_pattern: `--hybrid-layer-pattern`; None: what `model` has, and a GPT where it has none.
    """
    pattern = _pattern(model, hybrid_layer_pattern)
    return tuple(layer for part in parts_of(model) for layer in _layers_of_part(part, pattern))


def experts_by_layer(model: Any, hybrid_layer_pattern: str | None = None) -> dict[int, int]:
    """Experts of each of the `competing_layers`, by its number; parts may have different numbers of experts."""
    pattern = _pattern(model, hybrid_layer_pattern)
    return {
        layer.number: part.transformer.num_moe_experts
        for part in parts_of(model)
        for layer in _layers_of_part(part, pattern)
    }


def _layers_of_part(part: ModelPart, pattern: str | None) -> list[CompetingLayer]:
    transformer = part.transformer
    if not transformer.num_moe_experts:
        return []
    if pattern is not None:
        kinds = _main_pattern(pattern).replace(Symbols.PIPE, "")
        numbers = [number for number, kind in enumerate(kinds, start=1) if kind == Symbols.MOE]
    else:
        numbers = _numbers_by_frequency(transformer)
    stage_chunks = decoder_stage_chunks(transformer, pattern)
    return [CompetingLayer(part.layers_before + number, stage_chunks[number - 1]) for number in numbers]


def moe_layer_numbers(model: Any, hybrid_layer_pattern: str | None = None) -> tuple[int, ...]:
    """The `number` of each of the `competing_layers`."""
    return tuple(layer.number for layer in competing_layers(model, hybrid_layer_pattern))


def moe_stage_chunks(model: Any, hybrid_layer_pattern: str | None = None) -> tuple[StageChunk, ...]:
    """The `stage_chunk` of each of the `competing_layers`."""
    return tuple(layer.stage_chunk for layer in competing_layers(model, hybrid_layer_pattern))


def decoder_stage_chunks(model: Any, hybrid_layer_pattern: str | None = None) -> tuple[StageChunk, ...]:
    """Pipeline stage and model chunk of each decoder layer, in order of depth: uneven stages, virtual stages, custom
    layouts and the `|` of hybrid patterns included. The arguments are those of `competing_layers`."""
    transformer, pattern = transformer_of(model), _pattern(model, hybrid_layer_pattern)
    stages = range(transformer.pipeline_model_parallel_size)
    if pattern is not None:
        segments = _main_pattern(pattern).split(Symbols.PIPE)
        if len(segments) > 1:  # a segment a stage, then the next chunk of each (upstream: `select_pipeline_segment`)
            places = (divmod(index, len(stages))[::-1] for index in range(len(segments)))
            return tuple(place for place, segment in zip(places, segments, strict=True) for _ in segment)
        transformer = copy.copy(transformer)
        transformer.num_layers = len(segments[0])
    chunks = range(transformer.virtual_pipeline_model_parallel_size or 1)
    return tuple(
        (stage, chunk) for chunk in chunks for stage in stages for _ in range(_num_layers(transformer, stage, chunk))
    )


def transformer_of(model: Any) -> TransformerConfig:
    """The TransformerConfig of a model's configuration, or that configuration where it is one."""
    return getattr(model, "transformer", model)


def _pattern(model: Any, hybrid_layer_pattern: str | None) -> str | None:
    return hybrid_layer_pattern if hybrid_layer_pattern is not None else getattr(model, "hybrid_layer_pattern", None)


def _main_pattern(pattern: str) -> str:
    return parse_hybrid_pattern(pattern).main_pattern or ""


def _numbers_by_frequency(transformer: TransformerConfig) -> list[int]:
    """MoE layers after `--moe-layer-freq`."""
    frequency = transformer.moe_layer_freq
    if isinstance(frequency, int):
        return [number + 1 for number in range(transformer.num_layers) if number % frequency == 0]
    return [number + 1 for number, is_moe in enumerate(frequency) if is_moe]


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
        cls, config: CompeteConfig, model: Any, current_step: Callable[[], int], hybrid_layer_pattern: str | None = None
    ) -> "Competition":
        """The competition of a model's MoE layers in its pipeline layout; see `competing_layers`.

        Raises:
            CompeteError: there are none, or a schedule that cannot be met.
        """
        layers = competing_layers(model, hybrid_layer_pattern)
        if not layers:
            raise CompeteError("no layer can compete, for the model has none with experts: give --num-experts")
        numbers, stage_chunks = zip(*layers, strict=True)
        return cls(config, numbers, current_step, stage_chunks)

    def loss_weight(self, num_layers: int) -> float:
        """Weight of one layer's losses, where the part of the model that it is in has so many layers that can compete."""
        return 1.0 / num_layers if self.config.layer_reduction == "mean" else 1.0

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
