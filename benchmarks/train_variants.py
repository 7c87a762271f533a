"""The models that take turns in `train_step.py`: one recipe, and what may differ in its MoE layers."""

import argparse
import copy
import functools
from dataclasses import dataclass
from typing import Any

from megatron.core.enums import ModelType
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.training import training
from megatron.training.argument_utils import pretrain_cfg_container_from_args
from megatron.training.global_vars import get_timers
from megatron.training.models.gpt import GPTModelConfig

from benchmarks.naive import ScheduledNaiveLayer
from megatron_compete.config import CompeteConfig
from megatron_compete.moe.competition import Competition
from megatron_compete.moe.layer import CompeteMoELayer
from megatron_compete.moe.specs import compete_layer_spec
from megatron_compete.training.model import model_config, transformer_config
from megatron_compete.training.spec import trainer_step

AUX_LOSS = {"moe_router_load_balancing_type": "aux_loss", "moe_aux_loss_coeff": 0.01}
"""Megatron's balance loss, for the models that have none of the competition's."""

VARIANTS: dict[str, dict[str, Any]] = {
    "topk": {"router": "topk", **AUX_LOSS},
    "rate0": {"compete_rate": 0.0, **AUX_LOSS},
    "compete": {},
    "naive": {},
}
"""Arguments over the recipe's. naive: at the same steps, in the same layers, every token to every expert with autograd
over all of it (`naive.py`)."""


@dataclass
class Trainee:
    """A model with its optimizer, as `training.train_step` takes them."""

    model: list[Any]
    optimizer: Any
    scheduler: Any
    config: Any


def arguments_of(args: argparse.Namespace, variant: str, fp8_recipe: str | None) -> argparse.Namespace:
    """The recipe's validated arguments with the variant's over them."""
    changed = copy.copy(args)
    for name, value in VARIANTS[variant].items():
        setattr(changed, name, value)
    if fp8_recipe is not None:
        changed.fp8, changed.fp8_recipe = "hybrid", fp8_recipe
    return changed


def config_of(args: argparse.Namespace, variant: str, fp8_recipe: str | None) -> GPTModelConfig:
    """The model of a variant."""
    changed = arguments_of(args, variant, fp8_recipe)
    config = model_config(changed)
    if variant == "naive":
        competition = Competition.of_model(
            CompeteConfig.from_arguments(changed), transformer_config(changed), trainer_step
        )
        config.transformer_layer_spec = functools.partial(_naive_spec, competition=competition)
        config.pre_wrap_hooks.clear()  # they count competing layers of the plugin's
    return config


def _naive_spec(model_config: Any, vp_stage: int | None = None, *, competition: Competition) -> Any:
    """The competing layers' spec with each of them exchanged for the naive one."""
    block = compete_layer_spec(model_config, vp_stage, competition=competition)
    for layer in block.layer_specs:
        mlp = layer.submodules.mlp
        if isinstance(mlp, functools.partial) and mlp.func is CompeteMoELayer:
            layer.submodules.mlp = functools.partial(ScheduledNaiveLayer, *mlp.args, **mlp.keywords)
    return block


def build(args: argparse.Namespace, config: GPTModelConfig) -> Trainee:
    """Model and optimizer by the trainer's own functions, ready for a step."""
    from megatron.core.distributed import finalize_model_grads
    from megatron.core.utils import get_model_config

    model, optimizer, scheduler = training.setup_model_and_optimizer(
        ModelType.encoder_or_decoder,
        cfg_container=pretrain_cfg_container_from_args(args, config),
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(),
    )
    for chunk in model:
        chunk.train()
    settings = get_model_config(model[0])
    settings.grad_scale_func = optimizer.scale_loss  # these three the trainer sets before its loop
    settings.timers = get_timers()
    settings.finalize_model_grads_func = finalize_model_grads
    return Trainee(model, optimizer, scheduler, settings)
