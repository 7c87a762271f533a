"""Reading Megatron's `.idx`, by memory map: nothing of a large index is held, and nothing of Megatron is imported.

Layout (megatron/core/datasets/indexed_dataset.py), little endian, S sequences in D documents:

    magic 9 bytes | version uint64 | dtype code uint8 | S uint64 | D + 1 uint64
    tokens of each sequence int32 [S] | its first byte in the .bin int64 [S] | sequences up to each document int64 [D + 1]
    mode of each sequence int8 [S], in multimodal datasets only
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_compete.data.indexed import DTYPES, MAGIC, VERSION, IndexChunk

HEADER_BYTES = 34
CHUNK = 1 << 20
"""Sequences or documents that are looked at together."""


class DamagedIndex(Exception):
    """An `.idx` that cannot be read at all; the message says why, without the file's name."""


@dataclass(frozen=True)
class IndexFile:
    """The tables of an `.idx`, as maps of the file."""

    path: str
    dtype: type[Any]
    """Of the ids in the `.bin`."""

    lengths: np.ndarray
    """Tokens of each sequence, int32 [S]."""

    pointers: np.ndarray
    """First byte of each sequence in the `.bin`, int64 [S]."""

    bounds: np.ndarray
    """Sequences up to the beginning of each document and, last, the end of all: int64 [D + 1]."""

    multimodal: bool
    """Whether sequences have modes."""

    @property
    def sequences(self) -> int:
        """S."""
        return len(self.lengths)

    @property
    def documents(self) -> int:
        """D."""
        return len(self.bounds) - 1

    @property
    def item_bytes(self) -> int:
        """Size of an id."""
        return np.dtype(self.dtype).itemsize

    def tokens(self) -> int:
        """Tokens of all sequences."""
        blocks = range(0, self.sequences, CHUNK)
        return sum(int(self.lengths[start : start + CHUNK].sum(dtype=np.int64)) for start in blocks)

    def chunks(self) -> Iterator[IndexChunk]:
        """The index in pieces of up to `CHUNK` documents, as `indexed.write_index` takes them."""
        for start in range(0, self.documents, CHUNK):
            bounds = self.bounds[start : start + CHUNK + 1]
            yield IndexChunk(self.lengths[bounds[0] : bounds[-1]], bounds[1:] - bounds[0])

    def document_tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens of the documents `start` to `stop` - 1, int64."""
        bounds = np.asarray(self.bounds[start : stop + 1])
        sums = np.concatenate(([0], np.cumsum(self.lengths[bounds[0] : bounds[-1]], dtype=np.int64)))
        return np.diff(sums[bounds - bounds[0]])

    def document_bytes(self, document: int) -> tuple[int, int]:
        """Where a document lies in the `.bin`: first byte and number of bytes."""
        first, last = int(self.bounds[document]), int(self.bounds[document + 1])
        size = int(self.lengths[first:last].sum(dtype=np.int64)) * self.item_bytes
        return (int(self.pointers[first]), size) if last > first else (0, 0)


def read_index(path: str) -> IndexFile:
    """Map an `.idx`. Looks at header and size only.

    Raises:
        DamagedIndex: no such file, another magic, version or dtype, or a size that does not follow from the header.
    """
    try:
        with open(path, "rb") as stream:
            header = stream.read(HEADER_BYTES)
        size = os.path.getsize(path)
    except OSError as error:
        raise DamagedIndex(error.strerror or str(error)) from None
    dtype, sequences, bounds = _read_header(header)
    expected = HEADER_BYTES + 12 * sequences + 8 * bounds
    if size not in (expected, expected + sequences):
        raise DamagedIndex(f"{size} bytes, where {sequences} sequences in {bounds - 1} documents take {expected}")
    lengths_at, pointers_at, bounds_at = HEADER_BYTES, HEADER_BYTES + 4 * sequences, HEADER_BYTES + 12 * sequences
    return IndexFile(
        path,
        dtype,
        _map(path, np.int32, lengths_at, sequences),
        _map(path, np.int64, pointers_at, sequences),
        _map(path, np.int64, bounds_at, bounds),
        multimodal=size != expected,
    )


def _read_header(header: bytes) -> tuple[type[Any], int, int]:
    """Dtype, sequences, documents + 1."""
    if header[:9] != MAGIC[: len(header)] or len(header) < len(MAGIC):
        raise DamagedIndex(f"it begins with {header[:9]!r} and not with {MAGIC!r}: no index of Megatron's")
    if len(header) < HEADER_BYTES:
        raise DamagedIndex(f"it ends after {len(header)} bytes, within the header")
    version, code, sequences, bounds = struct.unpack("<QBQQ", header[9:])
    if version != VERSION:
        raise DamagedIndex(f"its version is {version} and not {VERSION}")
    if code not in DTYPES:
        raise DamagedIndex(f"its dtype code is {code}, which Megatron does not have")
    if bounds < 1:
        raise DamagedIndex("its table of documents is empty, where it has at least a 0")
    return DTYPES[code], sequences, bounds


def _map(path: str, dtype: type[Any], offset: int, count: int) -> np.ndarray:
    """A table of the file; an empty one cannot be mapped."""
    return np.memmap(path, dtype, "r", offset, (count,)) if count else np.empty(0, dtype)
