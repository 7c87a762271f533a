"""Conversations with pictures as the trainer's datasets."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron.core import mpu
from megatron.core.datasets.utils import Split
from megatron.training import get_args, get_tokenizer, print_rank_0

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.conversations.build import build_conversations, build_reader
from megatron_compete.data.conversations.checks import list_path, prepare_samples
from megatron_compete.data.conversations.config import ConversationConfig
from megatron_compete.data.conversations.dataset import ConversationDataset
from megatron_compete.data.conversations.reader import Reader
from megatron_compete.data.conversations.sample_list import SampleList
from megatron_compete.resilience.agreement import on_rank_0
from megatron_compete.training.data_arguments import parse_split, read_sources
from megatron_compete.training.vlm.external import build_external
from megatron_compete.vlm.parts import image_embeddings

SPLITS = (Split.train, Split.valid, Split.test)

Part = tuple[list[str], tuple[float, float]]
"""Files, and which share of their samples."""


def reader_of(args: argparse.Namespace) -> Reader:
    """How these arguments read a sample.

    Raises:
        CompeteError: settings, tokenizer, chat template or image processor that cannot be used.
    """
    return build_reader(
        ConversationConfig.from_arguments(args),
        get_tokenizer(),
        vision_model_type=args.vision_model_type,
        img_h=args.img_h,
        img_w=args.img_w,
        seq_length=args.seq_length,
        image_embeddings=image_embeddings(
            args.img_h, args.img_w, args.patch_dim, args.vision_model_type, args.disable_vision_class_token
        ),
        image_token=args.image_token,
    )


def parts_of(args: argparse.Namespace) -> list[Part | None]:
    """Of training, validation and test.

    Raises:
        CompeteError: none is named, or a file has a weight.
    """
    sources = read_sources(args)
    if not sources.prefixes:
        raise CompeteError("no training data: give --train-data-path FILE.json, and --valid-data-path")
    for blend in (sources.blend, *(sources.per_split or ())):
        if blend is not None and blend[1] is not None:
            raise CompeteError(
                f"{blend[0][0]} has a weight, and conversations are read once an epoch: name the files alone"
            )
    if sources.per_split is not None:
        return [None if blend is None else (blend[0], (0.0, 1.0)) for blend in sources.per_split]
    assert sources.blend is not None
    return [None if share is None else (sources.blend[0], share) for share in _shares(args.split)]


def _shares(split: str) -> list[tuple[float, float] | None]:
    """Where each part of `--split` begins and ends."""
    shares = parse_split(split)
    ends = [sum(shares[: number + 1]) / sum(shares) for number in range(len(shares))]
    return [(end - share / sum(shares), end) if share else None for share, end in zip(shares, ends)]


def check_conversations(args: argparse.Namespace) -> str | None:
    """List the samples, and say which training reads (`SampleList.identity`); None where energon does, as they come.

    Reads every sample the first time: one rank of a job does it.

    Raises:
        CompeteError: data that cannot be used.
    """
    reader = reader_of(args)
    if args.energon_path is not None:
        return None
    training, *_ = [
        None if part is None else prepare_samples(part[0], reader, args.data_cache_path) for part in parts_of(args)
    ]
    return None if training is None else SampleList.load(training).identity


def build_datasets(num_samples: Sequence[int | None], vp_stage: int | None = None) -> Any:
    """Train, validation and test sets (Megatron's dataset provider).

    Every pipeline stage reads tokens, and the first one pictures.
    """
    args = get_args()
    print_rank_0("> building train, validation and test datasets ...")
    reader = reader_of(args)
    if args.energon_path is not None:
        return build_external(args, reader)
    parts = parts_of(args)
    lists = on_rank_0(lambda: [None if part is None else str(_listed(part, reader, args)) for part in parts])
    if parts[1] is None and (args.eval_iters or args.full_validation):
        print_rank_0("megatron-compete: no validation part, so nothing is evaluated")
        args.eval_iters, args.full_validation = 0, False
    return [
        _dataset(args, reader, part, Path(listed), wanted, split) if part and listed and wanted != 0 else None
        for part, listed, wanted, split in zip(parts, lists, num_samples, SPLITS, strict=True)
    ]


build_datasets.is_distributed = True  # type: ignore[attr-defined]  # every rank calls it


def _listed(part: Part, reader: Reader, args: argparse.Namespace) -> Path:
    """The list of usable samples, which `check_conversations` has made, told of and compared."""
    path = list_path(part[0], reader, args.data_cache_path)
    return path if path.exists() else prepare_samples(part[0], reader, args.data_cache_path)


def _dataset(
    args: argparse.Namespace, reader: Reader, part: Part, listed: Path, num_samples: int | None, split: Split
) -> ConversationDataset:
    is_training = split == Split.train
    return build_conversations(
        reader,
        listed,
        num_samples=num_samples,
        seed=args.seed,
        batch_size=args.global_batch_size if is_training else args.eval_global_batch_size,
        share=part[1],
        with_images=mpu.is_pipeline_first_stage(),
        split=split,
    )
