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
            before = text.decode("utf-8", "replace")[: error.pos]
            line = _line_at(self.file, int(self.offsets[number])) + before.count("\n")
            column = len(before) - before.rfind("\n")
            raise BadSample("not_json", f"line {line}, column {column} of the line or sample: {error.msg}") from None


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
        last_begin = begins[-1] if len(begins) - 1 > len(ends) else ends[-1] if len(ends) else begins[0]
        raise _unfinished(file, content, int(last_begin))
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
    """Quotes and brackets of each block, without escaped quotes, which a backslash at its end may belong to."""
    at = start
    while at < len(content):
        block = content[at : at + BLOCK_BYTES]
        kept = block.rstrip(b"\\") if at + len(block) < len(content) else block
        block = kept or block  # backslashes alone: no JSON, and said so when it is parsed
        unescaped = block.replace(b"\\\\", b"__").replace(b'\\"', b"__")
        codes = _STRUCTURE[np.frombuffer(unescaped, dtype=np.uint8)]
        positions = np.flatnonzero(codes)
        yield at, codes[positions], positions
        at += len(block)


def _check_between(file: str, content: mmap.mmap, ends: list[int], begins: list[int]) -> None:
    """Between two samples stands a comma, before the first and after the last one nothing."""
    for number, (end, begin) in enumerate(zip(ends, begins)):
        wanted = b"," if 0 < number < len(ends) - 1 else b""
        if content[end + 1 : begin].strip() != wanted:
            raise _unexpected(file, content, end + 1, f"before sample {number}" if number < len(ends) - 1 else "at the end")


def _unexpected(file: str, content: mmap.mmap, at: int, where: str) -> CompeteError:
    line = _count_lines(content, at)
    found = content[at : at + 40].strip()
    return CompeteError(f"{file}:{line}: {found!r} {where} of the array: correct the file")


def _unfinished(file: str, content: mmap.mmap, begin: int) -> CompeteError:
    """Of an array whose brackets do not close: where the last sample that did not end begins, and what JSON says of it."""
    line = _count_lines(content, begin)
    try:
        json.loads(content[begin : begin + EXCERPT_BYTES].decode("utf-8", "replace"))
        reason = "its brackets do not match"
    except ValueError as error:
        reason = str(error)
    return CompeteError(f"{file}:{line}: what begins here does not end ({reason}): correct the file, or get it again")


def _line_at(file: str, offset: int) -> int:
    with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _count_lines(content, offset)


def _count_lines(content: mmap.mmap, offset: int) -> int:
    """The line that a byte lies in, from 1."""
    return 1 + sum(content[at : min(at + BLOCK_BYTES, offset)].count(b"\n") for at in range(0, offset, BLOCK_BYTES))
