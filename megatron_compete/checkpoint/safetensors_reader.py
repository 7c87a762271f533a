"""One safetensors file: a header that is checked, and its tensors one at a time.

Not the library's `safe_open`: it maps the file, so one that is cut short meanwhile ends the process by SIGBUS, and reading
805 MB of 32 MB tensors held 773 MB (here 36), and its errors do not name the file. The format: 8 bytes with the header's length, the header as JSON (dtype, shape and
place of each tensor), then the values, one tensor after another without holes.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_compete.checkpoint.reader import TensorInfo
from megatron_compete.common.errors import CompeteError

HEADER_LIMIT = 100_000_000
"""Bytes; the safetensors library's own limit."""

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
"""Names of safetensors."""


@dataclass(frozen=True)
class Stored:
    """Where a tensor's values lie in its file."""

    info: TensorInfo
    start: int
    end: int


class SafetensorsFile:
    """The header of one file, checked against the file's size.

    Raises:
        CompeteError: not a safetensors file, one that was cut short, or one whose tensors overlap or leave holes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            size = path.stat().st_size
            with path.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                header = stream.read(length) if length <= min(size, HEADER_LIMIT) else b""
        except OSError as error:
            raise CompeteError(f"{path} cannot be read: {error.strerror}") from error
        self.tensors = {name: self._stored(name, entry, 8 + length) for name, entry in self._entries(header).items()}
        self._check_places(8 + length, size)

    def _entries(self, header: bytes) -> dict[str, Any]:
        try:
            entries = json.loads(header, object_pairs_hook=_without_repetition)
            del entries["__metadata__"]
        except KeyError:
            pass
        except (ValueError, TypeError, RecursionError) as error:
            raise CompeteError(f"{self.path} is not a safetensors file, or its header was cut short: {error}") from None
        if not isinstance(entries, dict):
            raise CompeteError(f"{self.path} is not a safetensors file: its header is no JSON object")
        return entries

    def _stored(self, name: str, entry: Any, base: int) -> Stored:
        try:
            dtype, shape, (start, end) = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
            if not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise CompeteError(f"{self.path}: {name} has no known dtype, shape and place: {str(entry)[:200]}") from None
        if end - start != math.prod(shape) * dtype.itemsize:
            raise CompeteError(f"{self.path} is damaged: {end - start} bytes for {name} {tuple(shape)} {dtype}")
        return Stored(TensorInfo(tuple(shape), dtype), base + start, base + end)

    def _check_places(self, base: int, size: int) -> None:
        at = base
        for name, stored in sorted(self.tensors.items(), key=lambda item: (item[1].start, item[1].end)):
            if stored.start != at:
                raise CompeteError(
                    f"{self.path} is damaged: {name} begins at byte {stored.start}, where {at} is expected"
                )
            at = stored.end
        if at != size:
            state = "cut short" if size < at else "longer than its header says"
            raise CompeteError(f"{self.path} is {state}: {size} bytes instead of {at}")

    def read(self, name: str, index: tuple[int, ...] = ()) -> Tensor:
        """The tensor `name`, or its slice at `index` along the leading axes, on the CPU; no more is read than that."""
        stored = self.tensors[name]
        shape, start = stored.info.shape, stored.start
        for at in index:
            shape = shape[1:]
            start += at * math.prod(shape) * stored.info.dtype.itemsize
        data = torch.empty(math.prod(shape) * stored.info.dtype.itemsize, dtype=torch.uint8)
        with self.path.open("rb") as stream:
            stream.seek(start)
            if stream.readinto(data.numpy()) != data.numel():
                raise CompeteError(f"{self.path} was cut short while it was read")
        return data.view(stored.info.dtype).reshape(shape)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, in which a name stands once and can be printed."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands in it twice")
    for name in found:
        name.encode()
    return found
