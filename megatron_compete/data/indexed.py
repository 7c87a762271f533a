"""Writing Megatron's `.idx` and `.bin` from parts, without holding an index or ids in memory.

The layout is that of megatron/core/datasets/indexed_dataset.py, whose builder keeps a Python object for every sequence.
"""

import contextlib
import errno
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1

DTYPES: dict[int, type[np.generic]] = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    6: np.float64,
    7: np.float32,
    8: np.uint16,
}
"""Megatron's codes of dtypes (its `DType`; importing that takes seconds)."""

_COPY_BYTES = 1 << 24
_NOT_IN_KERNEL = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM}
"""What copy_file_range answers where it cannot be used: between some file systems, in some sandboxes."""


class IndexChunk(NamedTuple):
    """The index of some consecutive documents."""

    lengths: np.ndarray
    """Tokens of each sequence, int32."""

    document_ends: np.ndarray
    """Sequences within the chunk up to the end of each document, int64."""


def write_index(
    path: str, dtype: type[Any], sequences: int, documents: int, chunks: Callable[[], Iterable[IndexChunk]]
) -> None:
    """Write an `.idx` file.

    Args:
        dtype: of the ids in the `.bin`.
        sequences: in all chunks.
        documents: in all chunks.
        chunks: gives the chunks in order; called once for each of the file's three tables.
    """
    code = next(code for code, known in DTYPES.items() if known is dtype)
    with open(path, "wb") as stream:
        stream.write(MAGIC + struct.pack("<QBQQ", VERSION, code, sequences, documents + 1))
        for chunk in chunks():
            _write(stream, chunk.lengths, np.int32)
        for pointers in _pointers(chunks(), np.dtype(dtype).itemsize):
            _write(stream, pointers, np.int64)
        _write(stream, np.zeros(1), np.int64)
        for ends in _ends(chunks()):
            _write(stream, ends, np.int64)


def _write(stream: BinaryIO, values: np.ndarray, dtype: type[Any]) -> None:
    stream.write(np.ascontiguousarray(values, dtype=dtype).data)


def _pointers(chunks: Iterable[IndexChunk], item_bytes: int) -> Iterator[np.ndarray]:
    """Byte of the `.bin` at which each sequence begins."""
    before = 0
    for chunk in chunks:
        after = before + np.cumsum(chunk.lengths, dtype=np.int64) * item_bytes
        if len(after):
            yield np.concatenate(([before], after[:-1]))
            before = int(after[-1])


def _ends(chunks: Iterable[IndexChunk]) -> Iterator[np.ndarray]:
    """Sequences up to the end of each document."""
    before = 0
    for chunk in chunks:
        yield before + chunk.document_ends
        before += len(chunk.lengths)


def copy_range(source: int, target: int, offset: int, count: int) -> None:
    """Append `count` bytes of the file `source` from `offset` to the file `target`, in the kernel where it can.

    Args:
        source: file descriptor.
        target: file descriptor; written at its position.
    Raises:
        EOFError: `source` is too short.
    """
    end = offset + count
    if hasattr(os, "copy_file_range"):
        with _unless_not_in_kernel():
            while offset < end and (copied := os.copy_file_range(source, target, end - offset, offset)):
                offset += copied
    while offset < end:
        block = os.pread(source, min(_COPY_BYTES, end - offset), offset)
        if not block:
            raise EOFError(f"{end - offset} bytes are missing")
        _write_all(target, block)
        offset += len(block)


@contextlib.contextmanager
def _unless_not_in_kernel() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NOT_IN_KERNEL:
            raise


def _write_all(target: int, block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[os.write(target, view) :]
