"""Data and tokenizer, checked before training starts."""

import argparse
import os
from typing import Any

import numpy as np
from megatron.core.datasets.blended_megatron_dataset_config import (
    convert_split_vector_to_split_matrix,
    parse_and_normalize_split,
)
from megatron.training import get_tokenizer

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.dataset import Dataset
from megatron_compete.data.index_file import CHUNK
from megatron_compete.data.megatron_tokenizer import TokenizerChoice, id_count
from megatron_compete.data.tokenizer_match import check_tokenizer_matches
from megatron_compete.training.data_arguments import PARTS, Blend, Sources, read_sources
from megatron_compete.training.datasets import sequences_per_dataset


def check_data(args: argparse.Namespace) -> None:
    """Raise a `CompeteError` for data that is missing, damaged, too little, or of another tokenizer.

    Reads every index once: one rank of a job does it.
    """
    if args.mock_data:
        return
    sources = read_sources(args)
    if not sources.prefixes:
        raise CompeteError("no training data: give --data-path PREFIX (of the .bin/.idx pair), or --mock-data")
    _check_cache(args.data_cache_path)
    if args.full_validation:
        _check_full_validation(sources)
    if args.sft:
        _check_dialogues(sources.prefixes)
        return
    choice, vocab_size = TokenizerChoice.from_arguments(args), known_ids(get_tokenizer(), args.padded_vocab_size)
    datasets = {prefix: check_tokenizer_matches(prefix, choice, vocab_size) for prefix in sources.prefixes}
    _check_counts(datasets, sequences_per_dataset(args), vocab_size)
    if sources.blend is not None:
        for dataset in datasets.values():
            check_split(dataset, args.split)
    _check_enough(sources, datasets, args)


def known_ids(tokenizer: Any, padded_vocab_size: int) -> int:
    """Ids that a tokenizer gives and the model has rows for; a tokenizer with holes in its ids gives larger ones than its size."""
    return max(int(tokenizer.vocab_size), min(id_count(tokenizer), padded_vocab_size))


def check_split(dataset: Dataset, split: str) -> None:
    """Raise a `CompeteError` where a part of `--split` gets no token of a dataset.

    Megatron gathers epochs of such a part until they hold enough tokens, which is never
    (`BlendedMegatronDatasetBuilder._build_megatron_dataset_splits`, `GPTDataset._get_num_epochs`).
    """
    sequences = dataset.index.sequences
    for name, bounds in zip(PARTS, _matrix(split)):
        if bounds is None:
            continue
        start, stop = _sequences_of(bounds, sequences)
        if start >= stop:
            has = f"none of the {sequences} documents of {dataset.prefix}"
        elif not _tokens(dataset, start, stop):
            has = f"{stop - start} of the {sequences} documents of {dataset.prefix}, which hold no tokens"
        else:
            continue
        raise CompeteError(f"--split {split} leaves {name} {has}: give it a larger share, or 0")


def _matrix(split: str) -> list[tuple[float, float] | None]:
    """Where each part begins and ends, as fractions; None for a part without a share."""
    return list(convert_split_vector_to_split_matrix(parse_and_normalize_split(split)))


def _sequences_of(bounds: tuple[float, float], sequences: int) -> tuple[int, int]:
    """First and last + 1, rounded as the builder rounds."""
    return round(bounds[0] * float(sequences)), round(bounds[1] * float(sequences))


def _tokens(dataset: Dataset, start: int, stop: int) -> int:
    lengths = dataset.index.lengths
    return sum(int(lengths[at : min(at + CHUNK, stop)].sum(dtype=np.int64)) for at in range(start, stop, CHUNK))


def _check_enough(sources: Sources, datasets: dict[str, Dataset], args: argparse.Namespace) -> None:
    """Several datasets without weights are read once, however long the run (`_build_blended_dataset_splits`)."""
    blend = sources.blend if sources.blend is not None else (sources.per_split or [None])[0]
    if blend is None or blend[1] is not None or len(blend[0]) == 1 or args.skip_train:
        return
    bounds = _matrix(args.split)[0] if sources.blend is not None else (0.0, 1.0)
    assert bounds is not None, "training has a share"
    wanted = args.train_samples or args.train_iters * args.global_batch_size
    found = 0
    for prefix in blend[0]:
        dataset = datasets[prefix]
        found += max(0, _tokens(dataset, *_sequences_of(bounds, dataset.index.sequences)) - 1) // args.seq_length
    if found < wanted:
        raise CompeteError(
            f"{len(blend[0])} datasets without weights are read once, which makes {found} samples, and the run is of "
            f"{wanted}: give every dataset a weight, or fewer --train-iters"
        )


def _check_counts(datasets: dict[str, Dataset], counts: dict[str, list[int]] | None, vocab_size: int) -> None:
    """With --per-dataset-sequences-path Megatron reads no header: counts, and ids as wide as the vocabulary asks for."""
    if counts is None:
        return
    for prefix, dataset in datasets.items():
        index = dataset.index
        if counts.get(prefix) != [index.sequences, index.documents + 1]:
            raise CompeteError(
                f"--per-dataset-sequences-path has {counts.get(prefix, 'nothing')} for {prefix}, which has "
                f"[{index.sequences}, {index.documents + 1}]: make the file anew"
            )
        expected = np.int32 if vocab_size > np.iinfo(np.uint16).max + 1 else np.uint16
        if index.dtype is not expected:
            raise CompeteError(
                f"--per-dataset-sequences-path: ids of {prefix} are {index.dtype.__name__}, and Megatron would read them as "
                f"{expected.__name__}, by the vocabulary of {vocab_size}: leave it out"
            )


def _check_full_validation(sources: Sources) -> None:
    """`--full-validation` reads a part once, so no weight can say how often."""
    blend: Blend | None = sources.blend if sources.blend is not None else (sources.per_split or [None, None])[1]
    if blend is not None and blend[1] is not None:
        raise CompeteError("--full-validation reads every validation document once: name its datasets without weights")


def _check_dialogues(files: list[str]) -> None:
    """`SFTLowLevelDataset`, megatron/training/datasets/sft_dataset.py, reads JSON Lines by the package datasets."""
    for file in files:
        if not os.path.isfile(file):
            raise CompeteError(f"--sft: no file {file}: it reads dialogues as JSON Lines with a key messages")


def _check_cache(folder: str | None) -> None:
    if folder is not None and "://" not in folder:
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise CompeteError(f"--data-cache-path {folder} cannot be made: {error.strerror}; give another") from error
        if not os.access(folder, os.W_OK):
            raise CompeteError(f"--data-cache-path {folder} cannot be written: give another")
