"""Data and tokenizer, checked before training starts."""

import argparse
from typing import Any

from megatron.core.datasets.blended_megatron_dataset_config import (
    convert_split_vector_to_split_matrix,
    parse_and_normalize_split,
)
from megatron.training import get_tokenizer
from megatron.training.utils import get_blend_and_blend_per_split

from megatron_compete.data.index_file import read_index
from megatron_compete.data.match import check_tokenizer_matches
from megatron_compete.data.megatron_tokenizer import TokenizerChoice, id_count
from megatron_compete.errors import CompeteError


def data_prefixes(args: argparse.Namespace) -> list[str]:
    """The dataset prefixes that Megatron's data arguments name, without weights."""
    blend, per_split = get_blend_and_blend_per_split(args)
    blends = [blend] if blend is not None else list(per_split or [])
    return [prefix for one in blends if one is not None for prefix in one[0]]


def check_data(args: argparse.Namespace) -> None:
    """Raise a `CompeteError` for a missing dataset, one that another tokenizer made, or an empty part of --split."""
    if args.mock_data:
        return
    prefixes = data_prefixes(args)
    if not prefixes:
        raise CompeteError("no training data: give --data-path PREFIX (of the .bin/.idx pair), or --mock-data")
    known = known_ids(get_tokenizer(), args.padded_vocab_size)
    for prefix in prefixes:
        check_tokenizer_matches(
            prefix,
            tokenizer_type=args.tokenizer_type,
            tokenizer_model=args.tokenizer_model,
            vocab_size=known,
            tokenizer_options=TokenizerChoice.from_arguments(args).options,
        )
    blend, _ = get_blend_and_blend_per_split(args)
    if blend is not None and args.split is not None:
        for prefix in prefixes:
            check_split(prefix, args.split)


def known_ids(tokenizer: Any, padded_vocab_size: int) -> int:
    """Ids that a tokenizer gives and the model has rows for; a tokenizer with holes in its ids gives larger ones than its size."""
    return max(int(tokenizer.vocab_size), min(id_count(tokenizer), padded_vocab_size))


def check_split(prefix: str, split: str) -> None:
    """Raise a `CompeteError` where a part of `--split` gets none of a dataset's documents.

    Megatron gathers epochs of such a part until they hold enough tokens, which is never
    (`BlendedMegatronDatasetBuilder._build_megatron_dataset_splits`, `GPTDataset._get_num_epochs`).
    """
    documents = read_index(f"{prefix}.idx").sequences
    matrix = convert_split_vector_to_split_matrix(parse_and_normalize_split(split))
    for name, bounds in zip(("training", "validation", "test"), matrix):
        if bounds is not None and round(bounds[0] * documents) >= round(bounds[1] * documents):
            raise CompeteError(
                f"--split {split} leaves {name} none of the {documents} documents of {prefix}: give it a larger share, or 0"
            )
