"""Would this job train? Everything that is asked before a model is built, in one function for all who ask.

The trainer, `plan`, `submit` and a dry run call `check_job`; they differ in how Megatron comes to validate the arguments:
a rank makes them global, the others only look. So what one of them takes, the others take.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_compete.config import CompeteConfig
from megatron_compete.layout.rules import BrokenRules, broken_rules
from megatron_compete.moe.baselines import BASELINES, check_baseline
from megatron_compete.moe.baselines.config import BaselineConfig
from megatron_compete.moe.competition import Competition
from megatron_compete.moe.validation import check_all_parts
from megatron_compete.training.arguments import check_arguments
from megatron_compete.training.megatrons_words import megatrons_words
from megatron_compete.training.model import stock_config
from megatron_compete.vlm.exchange import check_parts
from megatron_compete.vlm.parts import VisionLanguageConfig
from megatron_compete.vlm.validation import check_competing


@dataclass(frozen=True)
class CheckedJob:
    """A job that may be built."""

    args: argparse.Namespace
    """Megatron's arguments, validated."""
    transformer: TransformerConfig
    competition: Competition | None
    """None with another router. Its current step is 0: it is for looking at."""
    vision_language: VisionLanguageConfig | None = None
    """All parts of a vision-language model, `transformer` being its decoder's; None of a language model."""


def check_job(
    args: argparse.Namespace, gpus_per_node: int, validate: Callable[[argparse.Namespace], argparse.Namespace]
) -> CheckedJob:
    """Check a job: our rules, Megatron's validation, what the router excludes, and the schedule, in this order.

    Args:
        args: as parsed, with `world_size`.
        gpus_per_node: of the machine that it will run on.
        validate: Megatron's validation of these arguments; returns the validated ones.
    Raises:
        BrokenRules: all rules of ours that the job breaks, each with a way out.
        CompeteError: what Megatron refuses, in its words, or what competition does.
    """
    if not (args.use_checkpoint_args or args.yaml_cfg):  # those complete the arguments only when they are validated
        broken = broken_rules(args, gpus_per_node)
        if broken:
            raise BrokenRules(broken)
    check_arguments(args)
    with megatrons_words():
        args = validate(args)
    return check_model(args)


def check_model(args: argparse.Namespace) -> CheckedJob:
    """The part of `check_job` that looks at validated arguments."""
    with megatrons_words():
        config = stock_config(args)
    vision_language: VisionLanguageConfig | None = getattr(config, "vision_language", None)
    competition = None
    if args.router == "compete":
        compete = CompeteConfig.from_arguments(args)
        check_all_parts(config, compete)
        if vision_language is not None and compete.enabled:
            check_competing(vision_language.settings)
        competition = Competition.of_model(compete, config, lambda: 0)
    elif args.router in BASELINES:
        settings = BaselineConfig.from_arguments(args)
        if vision_language is not None:
            check_parts(vision_language, args.router, settings)
        else:
            check_baseline(args.router, config.transformer, settings)
    return CheckedJob(args, config.transformer, competition, vision_language)
