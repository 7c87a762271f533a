"""Is a dataset whole? Every finding is one line; files of any size are gone through in blocks."""

import os
from dataclasses import dataclass, field

import numpy as np

from megatron_compete.common.errors import CompeteError
from megatron_compete.common.progress import Progress
from megatron_compete.data.dataset import bin_fault, manifest_fault
from megatron_compete.data.index_file import CHUNK, DamagedIndex, IndexFile, read_index
from megatron_compete.data.inspect.document_ends import Ends, count_ends, misplaced_note
from megatron_compete.data.manifest import DatasetManifest, manifest_path, read_manifest


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
    ends = count_ends(index, ids, vocabulary.eod)
    size = vocabulary.size
    if size is None and inspection.manifest is not None:
        size = inspection.manifest.vocab_size
    scanned = _scan(ids, size, ends.eod)
    _report_ids(inspection, index, ids, size, scanned)
    _report_ends(inspection, ends, vocabulary.eod, scanned.eods)


@dataclass
class _Scanned:
    """What going through all ids found."""

    smallest: int
    largest: int
    outside: int = 0
    """Ids outside the vocabulary."""

    first_outside: int | None = None
    """Place of the first of them."""

    eods: int = 0
    """End-of-document ids."""


def _scan(ids: np.ndarray, size: int | None, eod: int | None) -> _Scanned:
    scanned = _Scanned(int(ids[0]), int(ids[0]))
    with Progress("checking ids", ids.nbytes) as progress:
        for start in range(0, len(ids), CHUNK):
            block = ids[start : start + CHUNK]
            smallest, largest = int(block.min()), int(block.max())
            scanned.smallest, scanned.largest = min(scanned.smallest, smallest), max(scanned.largest, largest)
            scanned.eods += int((block == eod).sum())
            if smallest < 0 or (size is not None and largest >= size):
                outside = (block < 0) | (block >= size) if size is not None else block < 0
                scanned.outside += int(outside.sum())
                if scanned.first_outside is None:
                    scanned.first_outside = start + int(np.argmax(outside))
            progress.advance(0, block.nbytes)
    return scanned


def _report_ids(inspection: Inspection, index: IndexFile, ids: np.ndarray, size: int | None, scanned: _Scanned) -> None:
    first = scanned.first_outside
    if first is not None:
        sequence = int(np.searchsorted(index.pointers, first * index.item_bytes, side="right")) - 1
        limit = f"the vocabulary of {size}" if size is not None else "any vocabulary"
        inspection.damage.append(
            f"{inspection.prefix}.bin: {scanned.outside} of {len(ids)} ids are outside {limit}, the first, "
            f"{int(ids[first])}, in sequence {sequence}"
        )
    against = f" of {size}" if size is not None else "; give --vocab-size to check them"
    inspection.notes.append(f"ids from {scanned.smallest} to {scanned.largest}{against}")


def _report_ends(inspection: Inspection, ends: Ends, known: int | None, eods: int) -> None:
    """The last token of every document that has one."""
    promised = inspection.manifest is not None and inspection.manifest.append_eod
    if not ends.unended:
        inspection.notes.append(f"every document with tokens ends with token {ends.eod}")
    elif promised:
        assert ends.first_unended is not None
        number, last = ends.first_unended
        inspection.damage.append(
            f"{inspection.prefix}.bin: {ends.unended} documents do not end with token {ends.eod}, though made with "
            f"--append-eod; the first, document {number}, ends with {last}"
        )
    elif known is not None:
        inspection.notes.append(
            f"{ends.ended} documents end with the end-of-document token {ends.eod}, {ends.unended} do not"
        )
    else:
        inspection.notes.append("documents end with different tokens: none marks the end of a document")
    is_mark = promised or known is not None or not ends.unended
    if is_mark and (note := misplaced_note(ends, eods)):
        inspection.notes.append(note)
