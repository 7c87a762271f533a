"""Does a dataset belong to a tokenizer? Asked before training, because a wrong pair trains without complaint."""

import os
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_compete.data.manifest import DatasetManifest, manifest_path, read_manifest
from megatron_compete.data.megatron_tokenizer import TokenizerChoice
from megatron_compete.errors import CompeteError

if TYPE_CHECKING:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

SAMPLED_SEQUENCES = 2000
"""Sequences looked at in a dataset without a manifest: the first, the last and evenly spaced ones between."""

SAMPLED_TOKENS = 8192
"""Tokens looked at in each of them, from its beginning."""

_AGAIN = "preprocess the corpus again with this tokenizer (tools/preprocess_data.py)"


def check_tokenizer_matches(
    prefix: str,
    *,
    tokenizer_type: str,
    tokenizer_model: str | None,
    vocab_size: int,
    vocab_file: str | None = None,
    merge_file: str | None = None,
    tokenizer_options: Mapping[str, Any] | None = None,
) -> None:
    """Refuse a dataset that is not there, not whole, or not made with this tokenizer.

    With a manifest beside it, the tokenizers are compared by the sha256 of their files. A dataset of Megatron-LM's own
    tool has none: a bounded sample of its sequences must then stay below `vocab_size`.

    Args:
        prefix: path without `.bin`, as --data-path takes it.
        vocab_size: number of ids the model knows.
        tokenizer_options: the other flags that decide about ids (`TokenizerChoice.options`); None does not compare them.
    Raises:
        CompeteError: names the files and the way out.
    """
    dataset = _open(prefix)
    choice = TokenizerChoice(
        tokenizer_type, tokenizer_model=tokenizer_model, vocab_file=vocab_file, merge_file=merge_file
    )
    manifest = read_manifest(prefix)
    if manifest is None:
        _check_sample(prefix, dataset, vocab_size, choice)
        return
    _check_manifest_is_of(prefix, manifest, dataset)
    _check_same_tokenizer(prefix, manifest, choice)
    if tokenizer_options is not None:
        _check_same_options(prefix, manifest, tokenizer_options)
    if manifest.vocab_size > vocab_size:
        raise CompeteError(
            f"dataset {prefix} was made with a vocabulary of {manifest.vocab_size}, but the model has {vocab_size}: "
            f"raise the model's vocabulary (--padded-vocab-size), or {_AGAIN}"
        )


def _open(prefix: str) -> "IndexedDataset":
    for suffix in (".bin", ".idx"):
        if not os.path.isfile(prefix + suffix):
            stripped = prefix.removesuffix(".bin").removesuffix(".idx")
            hint = f"give the path without its suffix, {stripped}" if stripped != prefix else _how_to_make(prefix)
            raise CompeteError(f"no dataset at {prefix}: {prefix}{suffix} is missing; {hint}")
    if os.path.getsize(prefix + ".bin") == 0:
        raise CompeteError(f"dataset {prefix} holds no tokens: {prefix}.bin is empty; {_how_to_make(prefix)}")

    from megatron.core.datasets.indexed_dataset import IndexedDataset

    try:
        dataset = IndexedDataset(prefix, mmap=True)
        # Pointers are bytes, and the last sequence ends where the file does.
        end = int(dataset.index.sequence_pointers[-1]) + int(dataset.sequence_lengths[-1]) * dataset.index.dtype_size
    except (AssertionError, AttributeError, IndexError, ValueError, struct.error) as error:
        raise CompeteError(f"{prefix}.idx cannot be read ({error}): {_how_to_make(prefix)}") from None
    if end != os.path.getsize(prefix + ".bin"):
        raise CompeteError(
            f"{prefix}.bin has {os.path.getsize(prefix + '.bin')} bytes where {prefix}.idx expects {end}: the two are "
            f"not of one run, or the copy is incomplete; {_how_to_make(prefix)}"
        )
    return dataset


def _how_to_make(prefix: str) -> str:
    return f"make it with tools/preprocess_data.py --output-prefix {prefix.removesuffix('_text_document')}"


def _check_manifest_is_of(prefix: str, manifest: DatasetManifest, dataset: "IndexedDataset") -> None:
    tokens = os.path.getsize(prefix + ".bin") // dataset.index.dtype_size
    if (manifest.sequences, manifest.tokens) != (len(dataset), tokens):
        raise CompeteError(
            f"{manifest_path(prefix)} is of another dataset than {prefix}.bin ({manifest.tokens} tokens in "
            f"{manifest.sequences} sequences against {tokens} in {len(dataset)}): remove it if another tool wrote the "
            "dataset, or preprocess again"
        )


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


def _check_same_options(prefix: str, manifest: DatasetManifest, options: Mapping[str, Any]) -> None:
    for name in sorted(manifest.tokenizer_options.keys() | options.keys()):
        made, given = manifest.tokenizer_options.get(name, "its default"), options.get(name, "its default")
        if made != given:
            raise CompeteError(
                f"dataset {prefix} was made with {name} {made}, and training has {given}: ids of the same text differ; "
                f"give training the same tokenizer flags, or {_AGAIN}"
            )


def _check_sample(prefix: str, dataset: "IndexedDataset", vocab_size: int, choice: TokenizerChoice) -> None:
    count = min(len(dataset), SAMPLED_SEQUENCES)
    for index in np.unique(np.linspace(0, len(dataset) - 1, count).astype(np.int64)):
        length = min(int(dataset.sequence_lengths[index]), SAMPLED_TOKENS)
        ids = dataset.get(int(index), length=length)
        if length and (int(ids.max()) >= vocab_size or int(ids.min()) < 0):
            worst = int(ids.max()) if int(ids.max()) >= vocab_size else int(ids.min())
            raise CompeteError(
                f"sequence {index} of dataset {prefix} holds token id {worst}, outside the {vocab_size} ids of "
                f"{choice.describe()}: give the tokenizer it was made with, or {_AGAIN}"
            )
