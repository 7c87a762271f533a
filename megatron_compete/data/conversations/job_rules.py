"""What else a job must be like whose data are conversations: said before anything is read or built."""

import argparse
from collections.abc import Iterator
from dataclasses import fields

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.conversations.config import ConversationConfig, flag_of

DATA_FLAGS = (
    "data_path",
    "train_data_path",
    "valid_data_path",
    "test_data_path",
    "data_args_path",
    "per_split_data_args_path",
)


def check_conversation_arguments(args: argparse.Namespace) -> None:
    """Raise a `CompeteError` for the first rule that parsed arguments break; opens no data."""
    config = ConversationConfig.from_arguments(args)
    rules = _of_language_models(config) if args.vision_model_type is None else _of_conversations(args, config)
    for rule in rules:
        raise CompeteError(rule)


def _of_language_models(config: ConversationConfig) -> Iterator[str]:
    for field in fields(config):
        if getattr(config, field.name) != field.default:
            yield f"{flag_of(field.name)} is about conversations with images: give --vision-model-type, or leave it out"


def _of_conversations(args: argparse.Namespace, config: ConversationConfig) -> Iterator[str]:
    if args.dataloader_type == "cyclic":
        yield "--dataloader-type cyclic draws an order of its own, and conversations are in one already: leave it out"
    if config.pack:
        yield from _of_packs(args)
    if config.group_by_modality and args.step_batch_size_schedule is not None:
        yield "--group-by-modality fills global batches of one size, and --step-batch-size-schedule has several: leave one out"
    yield from _of_energon(args, config)


def _of_packs(args: argparse.Namespace) -> Iterator[str]:
    if args.transformer_impl != "transformer_engine":
        yield "--pack-conversations needs attention that keeps conversations apart: give --transformer-impl transformer_engine"
    if args.micro_batch_size not in (None, 1):
        yield f"--pack-conversations fills --seq-length by itself: give --micro-batch-size 1 and not {args.micro_batch_size}"


def _of_energon(args: argparse.Namespace, config: ConversationConfig) -> Iterator[str]:
    external = args.dataloader_type == "external"
    if external and config.energon_path is None:
        yield "--dataloader-type external reads a megatron-energon dataset: give --energon-path, or leave it out"
    if config.energon_path is not None and not external:
        yield "--energon-path is read from outside of Megatron's loader: give --dataloader-type external"
    if config.dataloader_save is not None and not external:
        yield "--dataloader-save keeps an external loader's place, and conversations need none: leave it out"
    given = [f"--{name.replace('_', '-')}" for name in DATA_FLAGS if getattr(args, name)]
    if external and given:
        yield f"{given[0]} has no effect with --energon-path: leave one of them out"
    if external and args.full_validation:
        yield "--full-validation needs to know how many samples there are, which energon does not: give --eval-iters"
