"""One dataset to several by documents, without encoding anything again.

    megatron-compete split --input data/corpus_text_document --output-prefix data/corpus \\
        --parts train=rest valid=0.01 test=2000

writes `data/corpus_train.bin`, `.idx` and `.json` and so on. Every document goes to one part, drawn by `--seed`, and
keeps its place among those of its part. The same dataset, parts and seed give the same bytes.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from megatron_compete.common.command_line import Command, option
from megatron_compete.common.errors import CompeteError
from megatron_compete.common.files import StagedFiles
from megatron_compete.common.progress import Progress
from megatron_compete.data.dataset import Dataset, open_dataset
from megatron_compete.data.index_file import CHUNK, IndexFile
from megatron_compete.data.indexed import IndexChunk, copy_range, write_index
from megatron_compete.data.manifest import DatasetManifest, manifest_path

LEFT_OUT = 255
"""Label of a document that is in no part."""

REST = "rest"


@dataclass(frozen=True)
class Part:
    """One output: its name, and how many documents it gets."""

    name: str
    size: str
    """A share with a point (`0.01`), a number of documents (`2000`), or `rest`."""

    @classmethod
    def parse(cls, text: str) -> "Part":
        """`valid=0.01`.

        Raises:
            CompeteError: another form.
        """
        name, equals, size = text.partition("=")
        if not name or not equals or os.sep in name or not _is_size(size):
            raise CompeteError(
                f"--parts {text}: write NAME=SIZE, where SIZE is a share like 0.01, a number of documents like 2000, or "
                f"{REST}"
            )
        return cls(name, size)


def _is_size(size: str) -> bool:
    if size == REST or size.isdecimal():
        return True
    try:
        return "." in size and 0 < float(size) <= 1
    except ValueError:
        return False


@dataclass(frozen=True)
class SplitPart:
    """What became of a part."""

    prefix: str
    documents: int
    tokens: int


def split_dataset(
    prefix: str, output_prefix: str, parts: Sequence[Part], seed: int = 1234, contiguous: bool = False
) -> tuple[list[SplitPart], int]:
    """Write every part as a dataset; the parts, and the number of documents in none.

    Args:
        contiguous: documents go to the parts in order instead of being drawn.
    Raises:
        CompeteError: a damaged dataset, parts that do not fit it, or a place that cannot be written to.
    """
    dataset = open_dataset(prefix)
    counts = part_sizes(parts, dataset.index.documents)
    labels = document_labels(counts, dataset.index.documents, seed, contiguous)
    try:
        with StagedFiles() as staged, Progress("splitting", os.path.getsize(dataset.bin_path)) as progress:
            written = [
                _write_part(dataset, f"{output_prefix}_{part.name}", labels, label, staged, progress)
                for label, part in enumerate(parts)
            ]
            staged.commit()
    except OSError as error:
        raise CompeteError(f"{error.filename or output_prefix}: {error.strerror or error}") from None
    return written, dataset.index.documents - sum(counts)


def part_sizes(parts: Sequence[Part], documents: int) -> list[int]:
    """Documents of each part: shares are rounded down, and what that leaves of a whole goes to the largest.

    Raises:
        CompeteError: a name twice, too many parts, a part without documents, or more documents than there are.
    """
    names = [part.name for part in parts]
    if len(set(names)) != len(names) or len(parts) >= LEFT_OUT:
        raise CompeteError(f"--parts {' '.join(names)}: name each part once, and at most {LEFT_OUT - 1}")
    sizes = [_fixed_size(part, documents) for part in parts]
    rests = [index for index, part in enumerate(parts) if part.size == REST]
    if len(rests) > 1:
        raise CompeteError(f"--parts: only one part can be the {REST}")
    left = documents - sum(sizes)
    shares = sum(float(part.size) for part in parts if "." in part.size)
    if rests:
        sizes[rests[0]] = left
    elif abs(shares - 1) < 1e-9 and all("." in part.size for part in parts):
        sizes[sizes.index(max(sizes))] += left
    for part, size in zip(parts, sizes):
        if size < 1 or sum(sizes) > documents:
            asked = " ".join(f"{one.name}={one.size}" for one in parts)
            raise CompeteError(f"--parts {asked} do not fit {documents} documents: {part.name} would have {size}")
    return sizes


def _fixed_size(part: Part, documents: int) -> int:
    if part.size == REST:
        return 0
    # 0.29 of 100 is 29, and not the 28.999999999999996 that floats make of it.
    return int(float(part.size) * documents + 1e-6) if "." in part.size else int(part.size)


def document_labels(counts: Sequence[int], documents: int, seed: int, contiguous: bool) -> np.ndarray:
    """The part of each document, uint8 [documents]; `LEFT_OUT` for none."""
    labels = np.full(documents, LEFT_OUT, dtype=np.uint8)
    labels[: sum(counts)] = np.repeat(np.arange(len(counts), dtype=np.uint8), counts)
    if not contiguous:
        np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, 0], dtype=np.uint64))).shuffle(labels)
    return labels


def _write_part(
    dataset: Dataset, prefix: str, labels: np.ndarray, label: int, staged: StagedFiles, progress: Progress
) -> SplitPart:
    if os.path.realpath(prefix) == os.path.realpath(dataset.prefix):
        raise CompeteError(f"--output-prefix: the part {prefix} would replace the dataset it is made from")
    index = dataset.index
    sequences, tokens, empty = _count(index, labels, label)
    if not tokens:
        raise CompeteError(f"the part {prefix} would hold no tokens: give it more documents")
    documents = int((labels == label).sum())
    with open(dataset.bin_path, "rb") as source, open(staged.path(prefix + ".bin"), "wb") as target:
        for stretch in _stretches(index, labels, label):
            copy_range(source.fileno(), target.fileno(), stretch.offset, stretch.size)
            progress.advance(stretch.documents, stretch.size)
    write_index(staged.path(prefix + ".idx"), index.dtype, sequences, documents, lambda: _chunks(index, labels, label))
    if dataset.manifest is not None:
        _part_manifest(dataset.manifest, documents, sequences, tokens, empty).write(staged.path(manifest_path(prefix)))
    elif os.path.exists(manifest_path(prefix)):
        staged.retire(manifest_path(prefix))
    return SplitPart(prefix, documents, tokens)


def _count(index: IndexFile, labels: np.ndarray, label: int) -> tuple[int, int, int]:
    """Sequences, tokens and documents without tokens of a part."""
    sequences = tokens = empty = 0
    bounds = index.bounds
    for start in range(0, index.documents, CHUNK):
        stop = min(start + CHUNK, index.documents)
        chosen = labels[start:stop] == label
        document_tokens = index.document_tokens(start, stop)[chosen]
        sequences += int(np.diff(bounds[start : stop + 1])[chosen].sum())
        tokens += int(document_tokens.sum())
        empty += int((document_tokens == 0).sum())
    return sequences, tokens, empty


class _Stretch(NamedTuple):
    """Neighbouring documents of a part, and where they lie in the `.bin`."""

    documents: int
    offset: int
    size: int
    """Bytes."""


def _stretches(index: IndexFile, labels: np.ndarray, label: int) -> Iterator[_Stretch]:
    before = 0
    for start in range(0, index.documents, CHUNK):
        stop = min(start + CHUNK, index.documents)
        ends = before + np.cumsum(np.concatenate(([0], index.document_tokens(start, stop)))) * index.item_bytes
        chosen = np.concatenate(([False], labels[start:stop] == label, [False]))
        edges = np.flatnonzero(chosen[1:] != chosen[:-1])
        for first, last in zip(edges[::2].tolist(), edges[1::2].tolist()):
            yield _Stretch(last - first, int(ends[first]), int(ends[last] - ends[first]))
        before = int(ends[-1])


def _chunks(index: IndexFile, labels: np.ndarray, label: int) -> Iterator[IndexChunk]:
    all_lengths, all_bounds = index.lengths, index.bounds
    for start in range(0, index.documents, CHUNK):
        bounds = np.asarray(all_bounds[start : start + CHUNK + 1])
        chosen = labels[start : start + len(bounds) - 1] == label
        per_document = np.diff(bounds)
        lengths = all_lengths[bounds[0] : bounds[-1]][np.repeat(chosen, per_document)]
        yield IndexChunk(lengths, np.cumsum(per_document[chosen]))


def _part_manifest(
    manifest: DatasetManifest, documents: int, sequences: int, tokens: int, empty: int
) -> DatasetManifest:
    return replace(
        manifest, documents=documents, sequences=sequences, tokens=tokens, empty_documents=empty, skipped={}, job=None
    )


@dataclass(frozen=True)
class SplitOptions:
    """The command's flags."""

    input: str = option(metavar="PREFIX", help="the dataset")
    output_prefix: str = option(metavar="PREFIX", help="writes PREFIX_NAME.bin and so on")
    parts: tuple[str, ...] = option(
        metavar="NAME=SIZE", help="SIZE is a share with a point (0.01), a number of documents (2000), or rest"
    )
    seed: int = option(1234, help="decides which documents a part gets")
    contiguous: bool = False
    """Give the parts the documents in order instead of drawing them."""


def run(options: SplitOptions) -> None:
    """Split and say what came of it."""
    parts = [Part.parse(text) for text in options.parts]
    written, left_out = split_dataset(options.input, options.output_prefix, parts, options.seed, options.contiguous)
    for part in written:
        print(f"wrote {part.prefix}: {part.documents} documents, {part.tokens} tokens")
    if left_out:
        print(f"{left_out} documents are in no part")


main = Command(
    name="split",
    description="Split a dataset (.bin/.idx and manifest) by documents.",
    example="--input data/corpus_text_document --output-prefix data/corpus --parts train=rest valid=0.01 test=2000",
    options=SplitOptions,
    run=run,
)
