"""Reading Megatron's `.idx`, by memory map: nothing of a large index is held, and nothing of Megatron is imported.

An index that `read_index` returns has been gone through: its tables fit one another, and every reader may rely on it.

Layout (megatron/core/datasets/indexed_dataset.py), little endian, S sequences in D documents:

    magic 9 bytes | version uint64 | dtype code uint8 | S uint64 | D + 1 uint64
    tokens of each sequence int32 [S] | its first byte in the .bin int64 [S] | sequences up to each document int64 [D + 1]
    mode of each sequence int8 [S], in multimodal datasets only
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from megatron_compete.data.indexed import DTYPES, MAGIC, VERSION, IndexChunk

HEADER_BYTES = 34
CHUNK = 1 << 20
"""Sequences or documents that are looked at together."""


class DamagedIndex(Exception):
    """An `.idx` that cannot be used; the message says why, without the file's name."""


@dataclass(frozen=True)
class IndexFile:
    """The tables of an `.idx`. Each is mapped when it is asked for, and holds no descriptor once its array is let go."""

    path: str
    dtype: type[Any]
    """Of the ids in the `.bin`."""

    sequences: int
    """S."""

    documents: int
    """D."""

    tokens: int
    """Of all sequences."""

    multimodal: bool
    """Whether sequences have modes."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence, int32 [S]."""
        return self._map(np.int32, HEADER_BYTES, self.sequences)

    @property
    def pointers(self) -> np.ndarray:
        """First byte of each sequence in the `.bin`, int64 [S]."""
        return self._map(np.int64, HEADER_BYTES + 4 * self.sequences, self.sequences)

    @property
    def bounds(self) -> np.ndarray:
        """Sequences up to the beginning of each document and, last, the end of all: int64 [D + 1]."""
        return self._map(np.int64, HEADER_BYTES + 12 * self.sequences, self.documents + 1)

    def _map(self, dtype: type[Any], offset: int, count: int) -> np.ndarray:
        """A table of the file; an empty one cannot be mapped."""
        return np.memmap(self.path, dtype, "r", offset, (count,)) if count else np.empty(0, dtype)

    @property
    def item_bytes(self) -> int:
        """Size of an id."""
        return np.dtype(self.dtype).itemsize

    def chunks(self) -> Iterator[IndexChunk]:
        """The index in chunks of up to `CHUNK` documents, as `indexed.write_index` takes them."""
        all_lengths, all_bounds = self.lengths, self.bounds
        for start in range(0, self.documents, CHUNK):
            bounds = all_bounds[start : start + CHUNK + 1]
            yield IndexChunk(all_lengths[bounds[0] : bounds[-1]], bounds[1:] - bounds[0])

    def document_tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens of the documents `start` to `stop` - 1, int64."""
        bounds = np.asarray(self.bounds[start : stop + 1])
        sums = np.concatenate(([0], np.cumsum(self.lengths[bounds[0] : bounds[-1]], dtype=np.int64)))
        return np.diff(sums[bounds - bounds[0]])

    def document_bytes(self, document: int) -> tuple[int, int]:
        """Where a document lies in the `.bin`: first byte and number of bytes."""
        first, last = self.bounds[document : document + 2].tolist()
        size = int(self.lengths[first:last].sum(dtype=np.int64)) * self.item_bytes
        return (int(self.pointers[first]), size) if last > first else (0, 0)


def read_index(path: str) -> IndexFile:
    """Open an `.idx` and check all of it, in blocks of `CHUNK`: 0.13 to 0.27 s for 20 million sequences.

    Raises:
        DamagedIndex: no such file, another magic or version, a dtype that ids do not have, a size that does not follow
            from the header, or tables that contradict one another.
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
    index = IndexFile(path, dtype, sequences, bounds - 1, tokens=0, multimodal=size != expected)
    tokens = _check_sequences(index)
    _check_documents(index)
    return replace(index, tokens=tokens)


def _check_sequences(index: IndexFile) -> int:
    """Tokens of all sequences, which lie in the `.bin` one after another as Megatron's builder puts them.

    Its reader would also follow pointers elsewhere, but whatever copies a `.bin`, its own merge among them, goes by lengths.
    """
    lengths, pointers, end = index.lengths, index.pointers, 0
    for start in range(0, index.sequences, CHUNK):
        block = lengths[start : start + CHUNK]
        if block.min() < 0:
            at = int(np.argmax(block < 0))
            raise DamagedIndex(f"its table of lengths gives sequence {start + at} {block[at]} tokens")
        ends = end + np.cumsum(block, dtype=np.int64) * index.item_bytes
        expected = np.concatenate(([end], ends[:-1]))
        wrong = pointers[start : start + CHUNK] != expected
        if wrong.any():
            at = int(np.argmax(wrong))
            raise DamagedIndex(
                f"its table of pointers has sequence {start + at} begin at byte {pointers[start + at]}, and its lengths "
                f"at {expected[at]}"
            )
        end = int(ends[-1])
    return end // index.item_bytes


def _check_documents(index: IndexFile) -> None:
    """Documents begin at sequence 0, follow one another and end with the last sequence."""
    bounds = index.bounds
    if bounds[0] != 0:
        raise DamagedIndex(f"its table of documents begins at sequence {bounds[0]} and not at 0")
    for start in range(0, index.documents, CHUNK):
        block = bounds[start : start + CHUNK + 1]
        backwards = block[1:] < block[:-1]
        if backwards.any():
            at = start + int(np.argmax(backwards))
            raise DamagedIndex(
                f"its table of documents has document {at} end at sequence {bounds[at + 1]}, before it begins"
            )
    if bounds[-1] != index.sequences:
        raise DamagedIndex(f"its table of documents ends at sequence {bounds[-1]} of {index.sequences}")


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
    if not issubclass(DTYPES[code], np.integer):
        raise DamagedIndex(f"its dtype code is {code}, {DTYPES[code].__name__}: token ids are integers")
    if bounds < 1:
        raise DamagedIndex("its table of documents is empty, where it has at least a 0")
    return DTYPES[code], sequences, bounds
