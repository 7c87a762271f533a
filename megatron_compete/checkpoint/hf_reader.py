"""A Hugging Face folder: its configuration and its tensors, one at a time, from safetensors files alone.

Tensors are read from the file rather than mapped into memory, so that what is held is the tensor that is wanted and
not every page that was ever touched. The format: 8 bytes with the header's length, the header as JSON (dtype, shape and
place of each tensor), then the values.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_compete.checkpoint.reader import TensorInfo
from megatron_compete.checkpoint.safetensors_writer import INDEX
from megatron_compete.errors import CompeteError
from megatron_compete.files import path_within

CONFIG = "config.json"
SINGLE = "model.safetensors"
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
        CompeteError: not a safetensors file, or one that was cut short.
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
        self.tensors = {name: self._stored(name, entry, 8 + length) for name, entry in self._entries(header)}
        end = max((stored.end for stored in self.tensors.values()), default=8 + length)
        if end != size:
            state = "cut short" if size < end else "longer than its header says"
            raise CompeteError(f"{path} is {state}: {size} bytes instead of {end}")

    def _entries(self, header: bytes) -> list[tuple[str, Any]]:
        try:
            entries = json.loads(header)
            return [(name, entry) for name, entry in entries.items() if name != "__metadata__"]
        except (ValueError, AttributeError):
            raise CompeteError(f"{self.path} is not a safetensors file, or its header was cut short") from None

    def _stored(self, name: str, entry: Any, base: int) -> Stored:
        try:
            info = TensorInfo(tuple(map(int, entry["shape"])), DTYPES[entry["dtype"]])
            start, end = (base + int(offset) for offset in entry["data_offsets"])
        except (KeyError, TypeError, ValueError):
            raise CompeteError(f"{self.path}: {name} has no known dtype, shape and place: {entry}") from None
        if end - start != torch.Size(info.shape).numel() * info.dtype.itemsize or start < base:
            raise CompeteError(f"{self.path} is damaged: {end - start} bytes for {name} {info.shape} {info.dtype}")
        return Stored(info, start, end)

    def read(self, name: str) -> Tensor:
        """The tensor `name`, on the CPU."""
        stored = self.tensors[name]
        data = torch.empty(stored.end - stored.start, dtype=torch.uint8)
        with self.path.open("rb") as stream:
            stream.seek(stored.start)
            if stream.readinto(data.numpy()) != data.numel():
                raise CompeteError(f"{self.path} was cut short while it was read")
        return data.view(stored.info.dtype).reshape(stored.info.shape)


class HfFolder:
    """A model's folder as `save_pretrained` writes it and the hub has it.

    Raises:
        CompeteError: no configuration, no safetensors, or files that do not belong together.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise CompeteError(f"--checkpoint {folder}: no such folder; a model of the hub has to be downloaded first")
        self.config = read_json(folder / CONFIG)
        self._weight_map = read_weight_map(folder)
        self.files = {name: SafetensorsFile(folder / name) for name in self._names()}
        self._check_index()

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """What there is, by name."""
        return {name: file.tensors[name].info for name, file in self._file_of.items()}

    def read(self, name: str, index: tuple[int, ...] = ()) -> Tensor:
        """The tensor `name`, or its slice at `index` along the leading axes."""
        return self._file_of[name].read(name)[index]

    @cached_property
    def _file_of(self) -> dict[str, SafetensorsFile]:
        return {name: file for file in self.files.values() for name in file.tensors}

    def _names(self) -> list[str]:
        if self._weight_map is None:
            if (self.folder / SINGLE).is_file():
                return [SINGLE]
            if any(self.folder.glob("*.bin")):
                raise CompeteError(
                    f"{self.folder} has its weights as .bin, pickles that can run code: only safetensors are read. "
                    "Load it with transformers and save it with save_pretrained"
                )
            raise CompeteError(f"{self.folder} has neither {SINGLE} nor {INDEX}")
        names = sorted(set(self._weight_map.values()))
        missing = [name for name in names if not (self.folder / name).is_file()]
        if missing:
            raise CompeteError(
                f"{self.folder} lacks {len(missing)} of its {len(names)} files: {', '.join(missing[:4])}"
            )
        return names

    def _check_index(self) -> None:
        if self._weight_map is None:
            return
        for name, file in self._weight_map.items():
            if name not in self.files[file].tensors:
                raise CompeteError(f"{self.folder / INDEX} has {name} in {file}, which does not hold it")
        strangers = sorted(self._file_of.keys() - self._weight_map.keys())
        if strangers:
            raise CompeteError(f"{self.folder}: {strangers[0]} is in a file and not in {INDEX}")


def read_weight_map(folder: Path) -> dict[str, str] | None:
    """The index of a folder, which file has which tensor; None with a single file.

    Raises:
        CompeteError: it is no such index, or names a file that is not in the folder.
    """
    path = folder / INDEX
    if not path.is_file():
        return None
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CompeteError(f"{path} has no weight_map")
    for name in weight_map.values():
        path_within(folder, name, path)
    return weight_map


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        CompeteError: it is missing, or something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CompeteError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CompeteError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CompeteError(f"{path} is not a JSON object")
    return value
