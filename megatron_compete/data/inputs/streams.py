"""Bytes of an input file, decompressed on the way; a file that is cut off or corrupt raises `BadDocument`."""

import bz2
import gzip
import io
import sys
import zlib
from collections.abc import Buffer, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from megatron_compete.data.faults import BadDocument
from megatron_compete.data.inputs.sources import Source

BUFFER_BYTES = 1 << 20
_LARGEST_ZSTD_WINDOW = 1 << 31
"""`zstd --long=31` needs it; memory is taken only where a frame asks for it."""


class InputStream:
    """A source opened for reading, with the position in the file on disk."""

    def __init__(self, source: Source) -> None:
        file = sys.stdin.fileno() if source.is_stdin else source.path
        self._disk = open(file, "rb", buffering=BUFFER_BYTES, closefd=not source.is_stdin)  # noqa: SIM115
        self.text: BinaryIO = _decompressed(self._disk, source.compression)
        """Decompressed bytes; it can seek only if nothing is compressed."""

    def disk_position(self) -> int:
        """Bytes of the file on disk that have been taken in; 0 for standard input."""
        return self._disk.tell() if self._disk.seekable() else 0

    def close(self) -> None:
        """Close the file."""
        self.text.close()
        self._disk.close()


def _decompressed(disk: BinaryIO, compression: str | None) -> BinaryIO:
    if compression is None:
        return disk
    if compression == "zst":
        return io.BufferedReader(_ZstdStream(disk), BUFFER_BYTES)
    file = gzip.GzipFile(fileobj=disk) if compression == "gz" else bz2.BZ2File(disk)
    return io.BufferedReader(_AtOnce(file), BUFFER_BYTES)


class _AtOnce(io.RawIOBase):
    """Hands out what a decompressor has at once: filling a whole buffer first, it would lose the data before a fault."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        return self._file.readinto1(buffer)


class _ZstdStream(io.RawIOBase):
    """Frames of a .zst file one after the other; zstandard's own reader takes a file that is cut off for a whole one."""

    def __init__(self, disk: BinaryIO) -> None:
        import zstandard

        self._disk = disk
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_LARGEST_ZSTD_WINDOW)
        self._frame = self._decompressor.decompressobj()
        self._begun = False
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
        if not compressed:
            if self._begun:
                raise EOFError("the last frame is not complete")
            return False
        self._begun, self._compressed = True, b""
        self._left = memoryview(self._frame.decompress(compressed))
        if self._frame.eof:
            self._compressed = self._frame.unused_data
            self._frame, self._begun = self._decompressor.decompressobj(), False
        return True


@contextmanager
def damage_as_bad_document(source: Source) -> Iterator[None]:
    """What decompressors raise for a file that is cut off or corrupt becomes a `BadDocument`.

    Errors of the disk itself have an errno and stay what they are.
    """
    try:
        yield
    except (EOFError, zlib.error) as error:
        raise _damaged(source, error) from None
    except OSError as error:
        if error.errno is not None or source.compression is None:
            raise
        raise _damaged(source, error) from None
    except Exception as error:
        if type(error).__name__ != "ZstdError":
            raise
        raise _damaged(source, error) from None


def _damaged(source: Source, error: Exception) -> BadDocument:
    return BadDocument("damaged", f"the .{source.compression} file is cut off or corrupt here ({error})")
