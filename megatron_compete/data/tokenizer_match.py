"""Does a dataset belong to a tokenizer? Asked before training, because a wrong pair trains without complaint."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.dataset import Dataset, open_dataset, without_suffix
from megatron_compete.data.manifest import DatasetManifest, manifest_path
from megatron_compete.data.megatron_tokenizer import TokenizerChoice

SAMPLED_SEQUENCES = 2000
"""Sequences looked at in a dataset without a manifest: the first, the last and evenly spaced ones between."""

SAMPLED_TOKENS = 8192
"""Tokens looked at in each of them, from its beginning."""

_AGAIN = "preprocess the corpus again with this tokenizer (megatron-compete preprocess)"


def check_tokenizer_matches(prefix: str, choice: TokenizerChoice, vocab_size: int) -> Dataset:
    """Refuse a dataset that is not there, not whole, or not made with this tokenizer.

    With a manifest beside it, the tokenizers are compared by the sha256 of their files and by the other flags that decide
    about ids. A dataset of Megatron-LM's own tool has none: a bounded sample of its sequences must then stay below
    `vocab_size`.

    Args:
        prefix: path without `.bin`, as --data-path takes it.
        vocab_size: number of ids the model knows.
    Raises:
        CompeteError: names the files and the way out.
    """
    dataset = _open(prefix)
    manifest = dataset.manifest
    if manifest is None:
        _check_sample(dataset, vocab_size, choice)
        return dataset
    _check_same_tokenizer(prefix, manifest, choice)
    _check_same_options(prefix, manifest.tokenizer_options, choice.options)
    if manifest.vocab_size > vocab_size:
        raise CompeteError(
            f"dataset {prefix} was made with a vocabulary of {manifest.vocab_size}, but the model has {vocab_size}: "
            f"raise the model's vocabulary (--padded-vocab-size), or {_AGAIN}"
        )
    return dataset


def _open(prefix: str) -> Dataset:
    for suffix in (".bin", ".idx"):
        if not os.path.isfile(prefix + suffix):
            stripped = without_suffix(prefix)
            hint = f"give the path without its suffix, {stripped}" if stripped != prefix else _how_to_make(prefix)
            raise CompeteError(f"no dataset at {prefix}: {prefix}{suffix} is missing; {hint}")
    dataset = open_dataset(prefix)
    if not dataset.index.tokens:
        raise CompeteError(f"dataset {prefix} holds no tokens: {prefix}.bin is empty; {_how_to_make(prefix)}")
    return dataset


def _how_to_make(prefix: str) -> str:
    return f"make it with megatron-compete preprocess --output-prefix {prefix.removesuffix('_text_document')}"


def _check_same_tokenizer(prefix: str, manifest: DatasetManifest, choice: TokenizerChoice) -> None:
    choice.check_files()
    made = TokenizerChoice(manifest.tokenizer_type, tokenizer_model=manifest.tokenizer_model)
    fingerprint = choice.fingerprint()
    same_library, same_files = made.library == choice.library, manifest.tokenizer_sha256 == fingerprint
    # Without files to compare (a hub name, NullTokenizer) the names must be the same.
    if same_library and same_files and (fingerprint or made.tokenizer_model == choice.tokenizer_model):
        return
    difference = "other content" if same_library else "another type"
    raise CompeteError(
        f"dataset {prefix} was made with {made.describe()} (manifest {manifest_path(prefix)}), and "
        f"{choice.describe()} has {difference}: its ids mean other text; give the tokenizer of the dataset, or {_AGAIN}"
    )


def _check_same_options(prefix: str, recorded: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    for name in sorted(recorded.keys() | options.keys()):
        made, given = recorded.get(name, "its default"), options.get(name, "its default")
        if made != given:
            raise CompeteError(
                f"dataset {prefix} was made with {name} {made}, and training has {given}: ids of the same text differ; "
                f"give training the same tokenizer flags, or {_AGAIN}"
            )


def _check_sample(dataset: Dataset, vocab_size: int, choice: TokenizerChoice) -> None:
    index, ids = dataset.index, dataset.ids()
    lengths, pointers = index.lengths, index.pointers
    count = min(index.sequences, SAMPLED_SEQUENCES)
    for sequence in np.unique(np.linspace(0, index.sequences - 1, count).astype(np.int64)).tolist():
        start = int(pointers[sequence]) // index.item_bytes
        sample = ids[start : start + min(int(lengths[sequence]), SAMPLED_TOKENS)]
        outside = sample[(sample < 0) | (sample >= vocab_size)]
        if outside.size:
            raise CompeteError(
                f"sequence {sequence} of dataset {dataset.prefix} holds token id {outside[0]}, outside the {vocab_size} "
                f"ids of {choice.describe()}: give the tokenizer it was made with, or {_AGAIN}"
            )
