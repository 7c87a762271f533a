"""Where each sample lies in a JSON array or JSON Lines file, found without parsing it: memory does not grow with the file.

An array is cut where its brackets say, outside of strings, a few hundred MB in a second or two. What lies between two
cuts is parsed when it is read, one sample at a time.
"""

import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.conversations.bad_samples import BadSample
from megatron_compete.data.inputs.signatures import HEAD_BYTES, compression_of

Bytes = NDArray[np.uint8]
Offsets = NDArray[np.int64]

BLOCK_BYTES = 1 << 22
EXCERPT_BYTES = 1 << 20
"""Of an unfinished sample that is parsed again for its error."""

_BOM = b"\xef\xbb\xbf"
_LFS = b"version https://git-lfs.github.com/"
_QUOTE, _OPEN, _CLOSE = 1, 2, 3

_STRUCTURE = np.zeros(256, dtype=np.uint8)
for _character, _meaning in {'"': _QUOTE, "{": _OPEN, "[": _OPEN, "}": _CLOSE, "]": _CLOSE}.items():
    _STRUCTURE[ord(_character)] = _meaning


@dataclass(frozen=True)
class JsonIndex:
    """Byte ranges of a file's samples, in its order."""

    file: str
    offsets: Offsets
    sizes: Offsets

    def __len__(self) -> int:
        return len(self.offsets)

    def raw(self, number: int) -> bytes:
        """The text of a sample."""
        with open(self.file, "rb") as stream:
            stream.seek(int(self.offsets[number]))
            return stream.read(int(self.sizes[number]))

    def read(self, number: int) -> Any:
        """A sample as it is parsed.

        Raises:
            BadSample: not_json, with line and column in the file.
        """
        text = self.raw(number)
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError as error:
            place = int(self.offsets[number]) + len(text.decode("utf-8", "replace")[: error.pos].encode())
            raise BadSample("not_json", f"{_place(self.file, place)}: {error.msg}") from None


def index_json(file: str) -> JsonIndex:
    """Find a file's samples.

    Raises:
        CompeteError: no such file, another format, or an array that is cut off or has something else between samples.
    """
    try:
        with open(file, "rb") as stream:
            head = stream.read(HEAD_BYTES)
            start = len(_BOM) if head.startswith(_BOM) else 0
            first = head[start:].lstrip()[:1]
            if first not in (b"[", b"{"):
                raise CompeteError(f"{file} {_what_else(head)}")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                ranges = _array(file, content, start) if first == b"[" else _lines(file, content, start)
    except OSError as error:
        raise CompeteError(f"{file} cannot be read: {error.strerror}: give a JSON array or JSON Lines") from error
    return JsonIndex(file, *ranges)


def _what_else(head: bytes) -> str:
    wanted = "a JSON array of samples or an object a line"
    compression = compression_of(head, None)
    if compression is not None:
        return f"is compressed ({compression}), and samples are read in any order: decompress it"
    if head.startswith(_LFS):
        return "is a Git LFS pointer and not the file: get that with git lfs pull"
    return f"is empty: give {wanted}" if not head.strip() else f"begins with {head.lstrip()[:20]!r}: give {wanted}"


def _lines(file: str, content: mmap.mmap, start: int) -> tuple[Offsets, Offsets]:
    """Lines that are not blank."""
    if content[start : start + 4096].lstrip().partition(b"\n")[0].strip() == b"{":
        raise CompeteError(f"{file} is an object over several lines: write it as an array, or an object a line")
    ends = [at + np.flatnonzero(block == ord("\n")) for at, block in _blocks(content, start)]
    bounds = _joined([np.array([start - 1]), *ends, np.array([len(content)])])
    offsets, sizes = bounds[:-1] + 1, np.diff(bounds) - 1
    short = np.flatnonzero(sizes < 4096)  # a blank line may hold spaces
    blank = [at for at in short if not content[offsets[at] : offsets[at] + sizes[at]].strip()]
    return np.delete(offsets, blank), np.delete(sizes, blank)


def _blocks(content: mmap.mmap, start: int) -> Iterator[tuple[int, Bytes]]:
    for at in range(start, len(content), BLOCK_BYTES):
        yield at, np.frombuffer(content[at : at + BLOCK_BYTES], dtype=np.uint8)


def _array(file: str, content: mmap.mmap, start: int) -> tuple[Offsets, Offsets]:
    """Elements of the outermost array."""
    begins, ends, array_ends = _brackets(content, start)
    if not len(array_ends):
        raise _unfinished(file, content, begins, ends)
    array_start, array_end = int(begins[0]), int(array_ends[0])
    if content[array_end : array_end + 1] != b"]":
        raise _unexpected(file, content, array_end, "at the end")
    if content[array_end + 1 :].strip():
        raise _unexpected(file, content, array_end + 1, "after the end")
    begins, ends = begins[1:], ends[ends < array_end]
    _check_between(file, content, [array_start, *ends.tolist()], [*begins.tolist(), array_end])
    return begins, ends - begins + 1


def _brackets(content: mmap.mmap, start: int) -> tuple[Offsets, Offsets, Offsets]:
    """Where the array and its elements begin, where elements end, and where the array does."""
    begins, ends, array_ends = [], [], []
    in_string, depth = 0, 0
    for at, codes, positions in _structure(content, start):
        parity = (np.cumsum(codes == _QUOTE) + in_string) & 1
        in_string = int(parity[-1]) if len(parity) else in_string
        outside = (parity == 0) & (codes != _QUOTE)
        opens = codes[outside] == _OPEN
        after = depth + np.cumsum(np.where(opens, 1, -1))
        depth = int(after[-1]) if len(after) else depth
        where = at + positions[outside]
        begins.append(where[opens & (after <= 2)])
        ends.append(where[~opens & (after == 1)])
        array_ends.append(where[~opens & (after <= 0)])
    return _joined(begins), _joined(ends), _joined(array_ends)


def _joined(parts: list[Offsets]) -> Offsets:
    return np.concatenate(parts).astype(np.int64)


def _structure(content: mmap.mmap, start: int) -> Iterator[tuple[int, Bytes, Offsets]]:
    """Quotes and brackets of each block, without escaped quotes; no block ends between a backslash and what it escapes."""
    at = start
    while at < len(content):
        end = min(at + BLOCK_BYTES, len(content))
        while end < len(content) and content[end - 1] == ord("\\"):
            end += 1
        unescaped = content[at:end].replace(b"\\\\", b"__").replace(b'\\"', b"__")
        codes = _STRUCTURE[np.frombuffer(unescaped, dtype=np.uint8)]
        positions = np.flatnonzero(codes)
        yield at, codes[positions], positions
        at = end


def _check_between(file: str, content: mmap.mmap, ends: list[int], begins: list[int]) -> None:
    """Between two samples stands a comma, before the first and after the last one nothing."""
    for number, (end, begin) in enumerate(zip(ends, begins)):
        wanted = b"," if 0 < number < len(ends) - 1 else b""
        if content[end + 1 : begin].strip() != wanted:
            raise _unexpected(
                file, content, end + 1, f"before sample {number}" if number < len(ends) - 1 else "at the end"
            )


def _unexpected(file: str, content: mmap.mmap, at: int, where: str) -> CompeteError:
    line = _count_lines(content, at)
    found = content[at : at + 40].strip()
    return CompeteError(f"{file}:{line}: {found!r} {where} of the array: correct the file")


def _unfinished(file: str, content: mmap.mmap, begins: Offsets, ends: Offsets) -> CompeteError:
    """Of an array that does not close: the first sample that is none, where there is one."""
    whole = [*ends.tolist(), len(content) - 1][: len(begins) - 1]
    for begin, end in zip(begins[1:].tolist(), whole):
        try:
            json.loads(content[begin : min(end + 1, begin + EXCERPT_BYTES)].decode("utf-8", "replace"))
        except ValueError as error:
            line = _count_lines(content, begin)
            return CompeteError(
                f"{file}:{line}: the array does not end, and what begins here is no sample ({error}): correct the file, or "
                "get it again"
            )
    return CompeteError(f"{file}: the array does not end: put a ] there, or get the file again")


def _place(file: str, offset: int) -> str:
    with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        before = content[content.rfind(b"\n", 0, offset) + 1 : offset].decode("utf-8", "replace")
        return f"line {_count_lines(content, offset)}, column {len(before) + 1}"


def _count_lines(content: mmap.mmap, offset: int) -> int:
    """The line that a byte lies in, from 1."""
    return 1 + sum(content[at : min(at + BLOCK_BYTES, offset)].count(b"\n") for at in range(0, offset, BLOCK_BYTES))
