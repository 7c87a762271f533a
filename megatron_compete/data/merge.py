"""Several datasets to one, without encoding anything again: byte for byte what Megatron's `add_index` gives.

    megatron-compete merge --input data/parts --output-prefix data/corpus_text_document

What differs from Megatron-LM's tool: several prefixes may be named instead of a folder, indices stream, the manifests
are merged too, and datasets of different tokenizers are refused.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from megatron_compete.common.command_line import Command, option
from megatron_compete.common.errors import CompeteError
from megatron_compete.common.files import StagedFiles
from megatron_compete.common.progress import Progress
from megatron_compete.data.dataset import Dataset, check_same_kind, find_prefixes, open_dataset
from megatron_compete.data.indexed import IndexChunk, copy_range, write_index
from megatron_compete.data.manifest import DatasetManifest, manifest_path


@dataclass(frozen=True)
class Merged:
    """What `merge_datasets` wrote."""

    prefix: str
    sources: tuple[str, ...]
    documents: int
    tokens: int
    has_manifest: bool


def merge_datasets(inputs: Sequence[str], output_prefix: str, ignore_manifests: bool = False) -> Merged:
    """Write the datasets after one another, in the order they are named.

    Args:
        inputs: prefixes, folders or patterns.
        ignore_manifests: compare dtypes alone; the result has no manifest.
    Raises:
        CompeteError: damaged or missing datasets, another dtype or tokenizer, or a place that cannot be written to.
    """
    prefixes = find_prefixes(inputs)
    if os.path.realpath(output_prefix) in map(os.path.realpath, prefixes):
        raise CompeteError(f"--output-prefix {output_prefix} is one of the datasets to merge: give another name")
    datasets = [open_dataset(prefix, ignore_manifests) for prefix in prefixes]
    _check_dtypes(datasets)
    manifest = _merged_manifest(datasets)
    try:
        return _write(datasets, output_prefix, manifest)
    except OSError as error:
        raise CompeteError(f"{error.filename or output_prefix}: {error.strerror or error}") from None


def _check_dtypes(datasets: Sequence[Dataset]) -> None:
    first = datasets[0]
    for one in datasets[1:]:
        if one.index.dtype != first.index.dtype:
            raise CompeteError(
                f"{first.prefix} holds ids as {first.index.dtype.__name__} and {one.prefix} as "
                f"{one.index.dtype.__name__}: they are of different vocabularies and cannot be merged"
            )


def _merged_manifest(datasets: Sequence[Dataset]) -> DatasetManifest | None:
    """The manifest of the whole; None when no dataset has one."""
    manifests = [dataset.manifest for dataset in datasets if dataset.manifest is not None]
    if not manifests:
        return None
    if len(manifests) < len(datasets):
        without = next(dataset.prefix for dataset in datasets if dataset.manifest is None)
        raise CompeteError(
            f"{without} has no manifest ({manifest_path(without)}) and others have: its tokenizer cannot be compared; "
            "give --ignore-manifests if you know it is the same"
        )
    check_same_kind(datasets, "merged")
    first = manifests[0]
    for dataset, manifest in zip(datasets, manifests):
        if manifest.append_eod != first.append_eod:
            raise CompeteError(
                f"{datasets[0].prefix} and {dataset.prefix} cannot be merged: one has end-of-document tokens "
                "(--append-eod) and the other has none; preprocess one of them again"
            )
    skipped: Counter[str] = Counter()
    for manifest in manifests:
        skipped.update(manifest.skipped)
    engines = [manifest.engine for manifest in manifests]
    return replace(
        first,
        documents=sum(manifest.documents for manifest in manifests),
        sequences=sum(manifest.sequences for manifest in manifests),
        tokens=sum(manifest.tokens for manifest in manifests),
        inputs=_each_once(entry for manifest in manifests for entry in manifest.inputs),
        skipped=dict(skipped),
        empty_documents=sum(manifest.empty_documents for manifest in manifests),
        engine=engines[0] if all(engine == engines[0] for engine in engines) else {"merged": engines},
        job=None,
    )


def _each_once(entries: Iterable[dict[str, str | int]]) -> list[dict[str, str | int]]:
    """In order of first appearance: parts of a split dataset name the same inputs."""
    return list({tuple(sorted(entry.items())): entry for entry in entries}.values())


def _write(datasets: Sequence[Dataset], prefix: str, manifest: DatasetManifest | None) -> Merged:
    sequences = sum(dataset.index.sequences for dataset in datasets)
    documents = sum(dataset.index.documents for dataset in datasets)
    tokens = sum(dataset.index.tokens for dataset in datasets)

    def chunks() -> Iterator[IndexChunk]:
        for dataset in datasets:
            yield from dataset.index.chunks()

    with StagedFiles() as staged:
        _copy_bins(datasets, staged.path(prefix + ".bin"))
        write_index(staged.path(prefix + ".idx"), datasets[0].index.dtype, sequences, documents, chunks)
        if manifest is not None:
            manifest.write(staged.path(manifest_path(prefix)))
        elif os.path.exists(manifest_path(prefix)):
            staged.retire(manifest_path(prefix))
        staged.commit()
    return Merged(prefix, tuple(dataset.prefix for dataset in datasets), documents, tokens, manifest is not None)


def _copy_bins(datasets: Sequence[Dataset], path: str) -> None:
    sizes = [os.path.getsize(dataset.bin_path) for dataset in datasets]
    with open(path, "wb") as target, Progress("merging", sum(sizes)) as progress:
        for dataset, size in zip(datasets, sizes):
            with open(dataset.bin_path, "rb") as source:
                copy_range(source.fileno(), target.fileno(), 0, size)
            progress.advance(dataset.index.documents, size)


@dataclass(frozen=True)
class MergeOptions:
    """The command's flags."""

    input: tuple[str, ...] = option(
        metavar="PATH",
        help="prefixes in the order they are to have, folders or glob patterns; a folder's datasets in sorted order",
    )
    output_prefix: str = option(metavar="PREFIX", help="of the .bin, .idx and .json")
    ignore_manifests: bool = False
    """Merge datasets whose tokenizers cannot be compared; the result has no manifest."""


def run(options: MergeOptions) -> None:
    """Merge and say what came of it."""
    merged = merge_datasets(options.input, options.output_prefix, options.ignore_manifests)
    note = "" if merged.has_manifest else "; without a manifest, as they have none"
    print(
        f"wrote {merged.prefix}: {merged.documents} documents, {merged.tokens} tokens from {len(merged.sources)} "
        f"datasets{note}"
    )


main = Command(
    name="merge",
    description="Merge datasets (.bin/.idx and manifest) into one.",
    example="--input data/parts --output-prefix data/corpus_text_document",
    options=MergeOptions,
    run=run,
)
