"""Competing layers for any other trainer of Megatron's: `--spec megatron_compete.training.spec compete_layer_spec`."""

import functools
from typing import Any

from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.training import get_args

from megatron_compete.config import CompeteConfig
from megatron_compete.moe import specs
from megatron_compete.moe.competition import Competition, moe_layer_numbers, moe_stage_chunks
from megatron_compete.resilience.resuming.schedule import check_agreement, keep_schedule
from megatron_compete.schedule.balanced import StageChunk
from megatron_compete.training.metrics import report_metrics


def compete_layer_spec(model_config: Any, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """`megatron_compete.moe.specs.compete_layer_spec` with the competition of the running trainer's arguments:
    `--compete-*` where its parser has them, else the defaults.

    Args:
        model_config: Megatron's GPTModelConfig (upstream: `megatron.training.models.gpt`).
        vp_stage: virtual pipeline stage that is being built.
    Raises:
        CompeteError: a setting that excludes competition, or a MoE module that is not Megatron's.
    """
    competition = _competition_of_trainer(model_config.transformer)
    return specs.compete_layer_spec(model_config, vp_stage, competition=competition)


def trainer_step() -> int:
    """The iteration, from 0, that Megatron's training loop is in."""
    return getattr(get_args(), "curr_iteration", 0)


@functools.cache
def _trainer_competition(
    config: CompeteConfig, layer_numbers: tuple[int, ...], stage_chunks: tuple[StageChunk, ...], num_experts: int
) -> Competition:
    args = get_args()
    competition = Competition(config, layer_numbers, trainer_step, stage_chunks)
    report_metrics(competition, num_experts, args)
    keep_schedule(competition, args)  # as long as the process lives
    check_agreement([], competition)
    return competition


def _competition_of_trainer(transformer: TransformerConfig) -> Competition:
    """One competition per process, whatever the number of virtual stages."""
    config, layer_numbers = CompeteConfig.from_arguments(get_args()), moe_layer_numbers(transformer)
    return _trainer_competition(config, layer_numbers, moe_stage_chunks(transformer), transformer.num_moe_experts or 0)
