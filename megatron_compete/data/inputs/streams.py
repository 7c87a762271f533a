"""Bytes of an input file, decompressed on the way; a file that is cut off or corrupt raises `BadDocument`.

Frames are taken apart here because the libraries' own file readers lose text without a word: see `_Frames`.
"""

import bz2
import io
import lzma
import sys
import zlib
from collections.abc import Buffer, Callable
from typing import Any, BinaryIO

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.bad_documents import BadDocument
from megatron_compete.data.inputs.json_layout import refuse_other_layout
from megatron_compete.data.inputs.signatures import HEAD_BYTES, compression_of, is_parquet, refuse_foreign
from megatron_compete.data.inputs.sources import Source

BUFFER_BYTES = 1 << 20
_LARGEST_ZSTD_WINDOW = 1 << 31
"""`zstd --long=31` needs it; memory is taken only where a frame asks for it."""

_ZEROS_BETWEEN = ("gz", "xz")
"""Formats whose frames may be followed by zeros."""


class InputStream:
    """A source opened for reading, with the position in the file on disk.

    Raises:
        CompeteError: a pipe that holds what cannot be read from one.
    """

    def __init__(self, source: Source) -> None:
        file = sys.stdin.fileno() if source.is_stdin else source.path
        self._disk = io.BufferedReader(io.FileIO(file, closefd=not source.is_stdin), BUFFER_BYTES)
        if source.is_pipe:
            _check_pipe(source, self._disk.peek(HEAD_BYTES)[:HEAD_BYTES])
        self.text: BinaryIO = _decompressed(self._disk, source)
        """Decompressed bytes; it can seek only if nothing is compressed."""

    def disk_position(self) -> int:
        """Bytes of the file on disk that have been taken in; 0 for a pipe."""
        return self._disk.tell() if self._disk.seekable() else 0

    def close(self) -> None:
        """Close the file."""
        self.text.close()
        self._disk.close()


def check_beginning(source: Source) -> None:
    """Look at the beginning of a file, decompressed; damage is left to whoever reads it all.

    Raises:
        CompeteError: it is of another format, or JSON of another layout than an object a line; or the library that
            decompresses it is not installed.
    """
    stream = InputStream(source)
    try:
        head = stream.text.read(HEAD_BYTES)
    except BadDocument:
        return
    finally:
        stream.close()
    _check_head(source, head)


def _check_head(source: Source, head: bytes) -> None:
    if source.format == "parquet" and is_parquet(head):
        return
    refuse_foreign(source.name, head, source.format == "text")
    if source.format == "jsonl":
        refuse_other_layout(source.path, source.compression, head, source.is_pipe)


def _check_pipe(source: Source, head: bytes) -> None:
    compression = compression_of(head, None)
    if compression is not None:
        raise CompeteError(f"--input {source.path} brings {compression} data: decompress it before the pipe")
    if is_parquet(head):
        raise CompeteError(f"--input {source.path} brings Parquet, which needs a file: give the .parquet file itself")
    _check_head(source, head)


def _decompressed(disk: BinaryIO, source: Source) -> BinaryIO:
    if source.compression is None:
        return disk
    return io.BufferedReader(_Frames(disk, source.compression, _decompressor(source)), BUFFER_BYTES)


def _decompressor(source: Source) -> Callable[[], Any]:
    """Makes decompressors of one frame, stream or member: `decompress`, `eof` and `unused_data`."""
    if source.compression == "gz":
        return lambda: zlib.decompressobj(16 + zlib.MAX_WBITS)
    if source.compression == "bz2":
        return bz2.BZ2Decompressor
    if source.compression == "xz":
        return lzma.LZMADecompressor
    if source.compression == "lz4":
        try:
            from lz4.frame import LZ4FrameDecompressor
        except ImportError:
            raise CompeteError(
                f"--input {source.path} is compressed by lz4: pip install lz4, or decompress it with lz4 -d"
            ) from None
        decompressor: Callable[[], Any] = LZ4FrameDecompressor
        return decompressor
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=_LARGEST_ZSTD_WINDOW).decompressobj


class _Frames(io.RawIOBase):
    """The frames of a compressed file, one after the other.

    The readers of the libraries will not do: zstandard's takes a file that is cut off for a whole one, and those of bz2
    and lzma take whatever follows the first stream for padding if it is damaged, and leave it out without a word.
    """

    def __init__(self, disk: BinaryIO, compression: str, decompressor: Callable[[], Any]) -> None:
        self._disk = disk
        self._compression = compression
        self._decompressor = decompressor
        self._frame = decompressor()
        self._begun = False
        self._frames = 0
        self._left = memoryview(b"")  # decompressed, not yet handed out
        self._compressed = b""  # of the next frame

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        while not self._left:
            if not self._decompress_some():
                return 0
        view = memoryview(buffer)
        count = min(len(view), len(self._left))
        view[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def _decompress_some(self) -> bool:
        """Take in one more block; False at the end of the file."""
        compressed = self._compressed or self._disk.read(BUFFER_BYTES // 16)
        if self._frames and not self._begun and self._compression in _ZEROS_BETWEEN:
            while compressed and not (compressed := compressed.lstrip(b"\0")):
                compressed = self._disk.read(BUFFER_BYTES // 16)
        if not compressed:
            if self._begun or not self._frames:
                raise self._damaged("its last frame is not complete" if self._begun else "it is empty")
            return False
        self._begun, self._compressed = True, b""
        try:
            self._left = memoryview(self._frame.decompress(compressed))
        except MemoryError:
            raise
        except Exception as error:  # every library raises its own kind
            raise self._damaged(str(error)) from None
        if self._frame.eof:
            self._compressed = self._frame.unused_data or b""
            self._frame, self._begun, self._frames = self._decompressor(), False, self._frames + 1
        return True

    def _damaged(self, reason: str) -> BadDocument:
        return BadDocument("damaged", f"the .{self._compression} file is cut off or corrupt here ({reason})")
