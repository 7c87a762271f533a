"""Megatron's configuration of the model that arguments ask for, with competing layers or a baseline router's in it."""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.training.argument_utils import (
    core_transformer_config_from_args,
    gpt_config_from_args,
    hybrid_config_from_args,
)
from megatron.training.models.base import ModelConfig
from megatron.training.models.gpt import default_layer_spec
from megatron.training.models.hybrid import HybridModelConfig
from megatron.training.utils import print_rank_0

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import DEFAULT_PRESET, CompeteConfig
from megatron_compete.moe.baselines import BASELINES, check_baseline
from megatron_compete.moe.baselines.config import BaselineConfig
from megatron_compete.moe.baselines.hash import give_token_ids
from megatron_compete.moe.competition import competing_layers
from megatron_compete.moe.metrics import install_counts
from megatron_compete.moe.specs import (
    baseline_hybrid_spec,
    baseline_layer_spec,
    compete_hybrid_spec,
    compete_layer_spec,
)
from megatron_compete.trainers import ModelCompetition
from megatron_compete.training.megatrons_words import megatrons_words
from megatron_compete.training.metrics import log_intervals
from megatron_compete.training.presets import describe_preset
from megatron_compete.training.spec import trainer_step
from megatron_compete.training.vlm.model import VisionLanguageModelConfig, vision_language_config
from megatron_compete.vlm.exchange import baseline_parts, competing_parts

LATENT_YARN = ("original_max_position_embeddings", "beta_fast", "beta_slow")
"""Fields of multi-latent attention's YaRN that Megatron has flags for, `--yarn-...`, and reads them for other attention alone
(upstream: `_apply_yarn_config_from_args`)."""


def transformer_config(args: argparse.Namespace) -> TransformerConfig:
    """Megatron's transformer settings; with `--relu` its activation is ReLU, which Megatron cannot fuse."""
    config = core_transformer_config_from_args(args)
    if args.multi_latent_attention:
        given = {name: getattr(args, f"yarn_{name}") for name in LATENT_YARN}
        vars(config).update({name: value for name, value in given.items() if value is not None})
    if args.relu:
        config.activation_func = torch.nn.functional.relu
        config.bias_activation_fusion = False
    return config


def model_config(args: argparse.Namespace) -> ModelConfig:
    """Megatron's model configuration, with competing layers, or those of a baseline router, unless `--router topk`.

    With `--hybrid-layer-pattern` a HybridModelConfig, else a GPTModelConfig.

    Raises:
        CompeteError: settings that exclude competition or the baseline, or a schedule that cannot be met.
    """
    return model_and_competition(args)[0]


def model_and_competition(args: argparse.Namespace) -> tuple[ModelConfig, ModelCompetition | None]:
    config = stock_config(args)
    config.pre_wrap_hooks.append(functools.partial(say_preset, args=args))
    install_counts(config)
    if args.router == "topk":
        return config, None
    if args.router in BASELINES:
        return _with_baseline(config, args), None
    competition = ModelCompetition(CompeteConfig.from_arguments(args), config, trainer_step, log_intervals(args))
    if isinstance(config, VisionLanguageModelConfig):
        config.exchanges = competing_parts(config.vision_language, competition)
    else:
        _set_layers(config, compete_layer_spec, compete_hybrid_spec, competition=competition)
    config.pre_wrap_hooks.append(competition.check_model)
    return config, competition


def stock_config(args: argparse.Namespace) -> Any:
    """Megatron's own configuration of the model that these arguments ask for.

    Raises:
        CompeteError: Megatron's refusal.
    """
    with megatrons_words():
        transformer = transformer_config(args)
        if args.hybrid_layer_pattern is not None and args.vision_model_type is None:
            return hybrid_config_from_args(args, transformer)
        of_args = gpt_config_from_args if args.vision_model_type is None else vision_language_config
        config: Any = of_args(args, transformer)
        config.rope_scaling_factor = args.rope_scaling_factor  # upstream leaves it at 8
        return config


def _set_layers(config: Any, of_gpt: Callable[..., Any], of_hybrid: Callable[..., Any], **settings: Any) -> None:
    """Have the model built of these layers; a hybrid model's are the same on all pipeline stages."""
    if isinstance(config, HybridModelConfig):
        config.hybrid_stack_spec = of_hybrid(config, **settings)
    else:
        config.transformer_layer_spec = functools.partial(of_gpt, stock=default_layer_spec, **settings)


def say_preset(model: list[MegatronModule], args: argparse.Namespace) -> list[MegatronModule]:
    """Print the preset, and the settings that are not its own; a hook that Megatron calls when the model is built."""
    if args.router == "compete" or args.compete_preset != DEFAULT_PRESET:
        print_rank_0(f"megatron-compete: {describe_preset(args)}")
    return model


def _with_baseline(config: Any, args: argparse.Namespace) -> Any:
    settings = BaselineConfig.from_arguments(args)
    if isinstance(config, VisionLanguageModelConfig):
        config.exchanges = baseline_parts(config.vision_language, args.router, settings)
    else:
        check_baseline(args.router, config.transformer, settings)
        _set_layers(config, baseline_layer_spec, baseline_hybrid_spec, router=args.router, settings=settings)
    if args.router == "hash":
        config.pre_wrap_hooks.append(functools.partial(give_token_ids, seed=args.seed))
    expected = len(competing_layers(config))
    config.pre_wrap_hooks.append(functools.partial(check_routers, router=args.router, expected=expected))
    return config


def check_routers(model: list[MegatronModule], router: str, expected: int) -> list[MegatronModule]:
    """Stop unless the model, over all pipeline stages, has the expected number of layers with this baseline router.

    A wrong layer spec would otherwise train Megatron's own layers without a word.
    """
    count = _count_modules(model, BASELINES[router].router)
    if count != expected:
        raise CompeteError(f"the model has {count} {router} routers instead of {expected}: its spec was replaced")
    print_rank_0(f"megatron-compete: {expected} layers route by {router}")
    return model


def _count_modules(model: list[MegatronModule], kind: type[torch.nn.Module]) -> int:
    """Modules of this kind over all pipeline stages."""
    from megatron.core import mpu

    here = sum(isinstance(module, kind) for chunk in model for module in chunk.modules())
    count = torch.tensor([here], device=torch.cuda.current_device())
    torch.distributed.all_reduce(count, group=mpu.get_pipeline_model_parallel_group())
    return int(count.item())
