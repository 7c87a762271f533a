"""Competing layers for any other trainer of Megatron's: `--spec megatron_compete.training.spec compete_layer_spec`."""

from typing import Any

from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.training import get_args

from megatron_compete.config import CompeteConfig
from megatron_compete.moe import specs
from megatron_compete.moe.competition import competing_layers
from megatron_compete.resilience.resuming.schedule import keep_schedule
from megatron_compete.trainers import ModelCompetition
from megatron_compete.training.metrics import log_intervals

_competitions: dict[Any, ModelCompetition] = {}
"""One in a process, whatever the number of virtual stages."""


def compete_layer_spec(model_config: Any, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """`megatron_compete.moe.specs.compete_layer_spec` with the competition of the running trainer's arguments:
    `--compete-*` where its parser has them, else the defaults.

    Args:
        model_config: Megatron's GPTModelConfig (upstream: `megatron.training.models.gpt`).
        vp_stage: virtual pipeline stage that is being built.
    Raises:
        CompeteError: a setting that excludes competition, or a MoE module that is not Megatron's.
    """
    return specs.compete_layer_spec(model_config, vp_stage, competition=_competition_of(model_config))


def trainer_step() -> int:
    """The iteration, from 0, that Megatron's training loop is in."""
    return getattr(get_args(), "curr_iteration", 0)


def _competition_of(model_config: Any) -> ModelCompetition:
    args = get_args()
    config = CompeteConfig.from_arguments(args)
    key = (config, competing_layers(model_config))
    if key not in _competitions:
        competition = ModelCompetition(config, model_config, trainer_step, log_intervals(args))
        keep_schedule(competition, args)  # as long as the process lives
        competition.check_schedule()
        _competitions[key] = competition
    return _competitions[key]
