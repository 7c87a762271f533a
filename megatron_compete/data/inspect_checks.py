"""Is a dataset whole? Every finding is one line; files of any size are gone through in blocks."""

import os
from dataclasses import dataclass, field

import numpy as np

from megatron_compete.data.dataset import bin_fault, manifest_fault
from megatron_compete.data.index_file import CHUNK, DamagedIndex, IndexFile, read_index
from megatron_compete.data.manifest import DatasetManifest, manifest_path, read_manifest
from megatron_compete.data.progress import Progress
from megatron_compete.errors import CompeteError


@dataclass(frozen=True)
class Vocabulary:
    """What ids may be."""

    size: int | None
    """Ids are below it; None checks that they are not negative."""

    eod: int | None
    """End-of-document id; None where it is not known."""


@dataclass
class Inspection:
    """What was found out about one dataset."""

    prefix: str
    index: IndexFile | None = None
    manifest: DatasetManifest | None = None
    damage: list[str] = field(default_factory=list)
    """Findings, each naming file and values."""

    notes: list[str] = field(default_factory=list)
    """What is worth knowing and no damage."""


def inspect(prefix: str, vocabulary: Vocabulary) -> Inspection:
    """Check everything that can be checked without the corpus.

    Args:
        vocabulary: its size counts before the manifest's.
    """
    inspection = Inspection(prefix)
    for suffix in (".bin", ".idx"):
        if not os.path.isfile(prefix + suffix):
            inspection.damage.append(f"{prefix}{suffix} is missing")
    inspection.manifest = _manifest(inspection)
    if os.path.isfile(prefix + ".idx"):
        _check_index(inspection)
    if inspection.index is not None and os.path.isfile(prefix + ".bin"):
        _check_bin(inspection, inspection.index, vocabulary)
    return inspection


def _manifest(inspection: Inspection) -> DatasetManifest | None:
    try:
        manifest = read_manifest(inspection.prefix)
    except CompeteError as error:
        inspection.damage.append(str(error))
        return None
    if manifest is None:
        inspection.notes.append(f"no manifest ({manifest_path(inspection.prefix)}): another tool made this dataset")
    return manifest


def _check_index(inspection: Inspection) -> None:
    """`inspection.index` is set where its tables can be used."""
    path = inspection.prefix + ".idx"
    try:
        inspection.index = read_index(path)
    except DamagedIndex as damage:
        inspection.damage.append(f"{path}: {damage}")


def _check_bin(inspection: Inspection, index: IndexFile, vocabulary: Vocabulary) -> None:
    path = inspection.prefix + ".bin"
    if fault := bin_fault(inspection.prefix, index):
        inspection.damage.append(fault)
        return
    if inspection.manifest is not None and (fault := manifest_fault(inspection.prefix, inspection.manifest, index)):
        inspection.damage.append(fault)
    if not os.path.getsize(path):
        inspection.damage.append(f"{path} holds no tokens")
        return
    ids = np.memmap(path, index.dtype, "r")
    _check_ids(inspection, index, ids, vocabulary)
    _check_ends(inspection, index, ids, vocabulary)


def _check_ids(inspection: Inspection, index: IndexFile, ids: np.ndarray, vocabulary: Vocabulary) -> None:
    size = vocabulary.size
    if size is None and inspection.manifest is not None:
        size = inspection.manifest.vocab_size
    smallest, largest, wrong, first = int(ids[0]), 0, 0, None
    with Progress("checking ids", ids.nbytes) as progress:
        for start in range(0, len(ids), CHUNK):
            block = ids[start : start + CHUNK]
            smallest, largest = min(smallest, int(block.min())), max(largest, int(block.max()))
            if smallest < 0 or (size is not None and largest >= size):
                outside = (block < 0) | (block >= size) if size is not None else block < 0
                wrong += int(outside.sum())
                first = start + int(np.argmax(outside)) if first is None and outside.any() else first
            progress.advance(0, block.nbytes)
    if first is not None:
        sequence = int(np.searchsorted(index.pointers, first * index.item_bytes, side="right")) - 1
        limit = f"the vocabulary of {size}" if size is not None else "any vocabulary"
        inspection.damage.append(
            f"{inspection.prefix}.bin: {wrong} of {len(ids)} ids are outside {limit}, the first, {int(ids[first])}, in "
            f"sequence {sequence}"
        )
    against = f" of {size}" if size is not None else "; give --vocab-size to check them"
    inspection.notes.append(f"ids from {smallest} to {largest}{against}")


def _check_ends(inspection: Inspection, index: IndexFile, ids: np.ndarray, vocabulary: Vocabulary) -> None:
    """The last token of every document that has one."""
    promised = inspection.manifest is not None and inspection.manifest.append_eod
    eod, end = vocabulary.eod, 0
    ended = unended = 0
    first = None
    for start in range(0, index.documents, CHUNK):
        lengths = index.document_tokens(start, min(start + CHUNK, index.documents))
        filled = np.flatnonzero(lengths)
        last_ids = ids[end + np.cumsum(lengths)[filled] - 1]
        end += int(lengths.sum())
        if eod is None and last_ids.size:
            eod = int(last_ids[0])
        wrong = np.flatnonzero(last_ids != eod)
        if wrong.size and first is None:
            first = start + int(filled[wrong[0]]), int(last_ids[wrong[0]])
        ended, unended = ended + last_ids.size - wrong.size, unended + wrong.size
    _report_ends(inspection, promised, vocabulary.eod, eod, ended, unended, first)


def _report_ends(
    inspection: Inspection,
    promised: bool,
    known: int | None,
    eod: int | None,
    ended: int,
    unended: int,
    first: tuple[int, int] | None,
) -> None:
    if not unended:
        inspection.notes.append(f"every document with tokens ends with token {eod}")
    elif promised:
        assert first is not None
        inspection.damage.append(
            f"{inspection.prefix}.bin: {unended} documents do not end with token {eod}, though made with --append-eod; "
            f"the first, document {first[0]}, ends with {first[1]}"
        )
    elif known is not None:
        inspection.notes.append(f"{ended} documents end with the end-of-document token {eod}, {unended} do not")
    else:
        inspection.notes.append("documents end with different tokens: none marks the end of a document")
