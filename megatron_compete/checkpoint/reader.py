"""A `torch_dist` checkpoint in one process: no process group, no CUDA, no model, one slice in memory at a time.

Megatron saves global tensors in chunks, one per rank that owned a part; the index says where each lies. So
the layout that wrote a checkpoint does not matter to a reader that puts chunks together by their offsets. Layers that
are all alike are stacked into one tensor with a leading layer axis, and experts into one with a leading expert axis
(`TransformerBlock.sharded_state_dict`, `SequentialMLP.sharded_state_dict`): `read` takes such an index.

Not torch's `FileSystemReader`: its `read_metadata` is a plain `pickle.load`, which runs what the file says.
"""

import io
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from megatron_compete.checkpoint.location import METADATA
from megatron_compete.checkpoint.restricted import load_metadata, load_plain, load_tensor
from megatron_compete.common.errors import CompeteError
from megatron_compete.common.files import path_within

COMMON_STATE = "common_state/shard_0_1"
"""Key of arguments and counters since Megatron-Core 0.19; before, they were the file `common.pt`."""
LEGACY_COMMON_STATE = "common.pt"

LIMIT = 2**60
"""Above every size, offset and number of bytes; sums of two stay below what 64 bits hold."""


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a stored tensor before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class TensorSource(Protocol):
    """Where a conversion takes tensors from."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """What there is."""
        ...

    def read(self, key: str, index: tuple[int, ...] = ()) -> Tensor:
        """The tensor `key`, or its slice at `index` along the leading axes."""
        ...


def tensor_entries(index: Metadata, path: Path) -> dict[str, TensorStorageMetadata]:
    """Entries of the tensors in an index, of which every number is one.

    Args:
        path: of the index, for errors.
    Raises:
        CompeteError: it is damaged.
    """
    entries = {key: one for key, one in index.state_dict_metadata.items() if isinstance(one, TensorStorageMetadata)}
    for key, entry in entries.items():
        if not isinstance(key, str) or not _is_entry(entry):
            raise CompeteError(f"{path} is damaged: {key!r} has no shape and chunks of that many sizes")
    for where, info in index.storage_data.items():
        if not _is_place(info):
            raise CompeteError(f"{path} is damaged: it has no place for {where}")
        path_within(path.parent, info.relative_path, str(path))
    return entries


def _is_entry(entry: TensorStorageMetadata) -> bool:
    try:
        shapes = [tuple(entry.size), *(tuple(one) for chunk in entry.chunks for one in (chunk.offsets, chunk.sizes))]
        is_dtype = isinstance(entry.properties.dtype, torch.dtype)
    except (AttributeError, TypeError):
        return False
    numbers = (number for shape in shapes for number in shape)
    return (
        is_dtype and len(set(map(len, shapes))) == 1 and all(type(one) is int and 0 <= one < LIMIT for one in numbers)
    )


def _is_place(info: Any) -> bool:
    """Whether an index says where a part lies by a name and two sizes."""
    numbers = (getattr(info, "offset", None), getattr(info, "length", None))
    named = isinstance(getattr(info, "relative_path", None), str)
    return named and all(type(number) is int and 0 <= number < LIMIT for number in numbers)


class Section(io.RawIOBase):
    """A part of a file as a file of its own, read without a copy: torch reads straight into a tensor's memory."""

    def __init__(self, path: Path, offset: int, length: int) -> None:
        self._file = path.open("rb", buffering=0)
        self._offset, self._length, self._at = offset, length, 0

    def is_short(self) -> bool:
        """Whether the file ends before the part does."""
        return os.fstat(self._file.fileno()).st_size < self._offset + self._length

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Bytes from the part's start."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move, within the part."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`, or as much of it as the part still has."""
        view = memoryview(buffer).cast("B")[: max(0, self._length - self._at)]
        self._file.seek(self._offset + self._at)
        filled = 0
        while filled < len(view) and (count := self._file.readinto(view[filled:])):
            filled += count
        self._at += filled
        return filled

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


class TorchDistCheckpoint:
    """One checkpoint folder; `find_checkpoint` says whether it is whole.

    Raises:
        CompeteError: the index or the common state is damaged, or they want code to be run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = load_metadata(folder / METADATA)
        self._storage: dict[MetadataIndex, Any] = index.storage_data
        self._entries = tensor_entries(index, folder / METADATA)
        self.tensors: dict[str, TensorInfo] = {
            key: TensorInfo(tuple(entry.size), entry.properties.dtype) for key, entry in self._entries.items()
        }
        self._chunks_by_index = cache(self._group_chunks)
        self._bytes = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        common = self._load_common()
        try:
            self.arguments: dict[str, Any] = vars(common["args"]) if "args" in common else {}
            self.iteration: int = int(common.get("iteration", 0))
        except (TypeError, ValueError) as error:
            raise CompeteError(f"the common state of {folder} is damaged: {error}") from error
        self.rate_schedule: dict[str, Any] = common.get("opt_param_scheduler") or {}
        """State of Megatron's `OptimizerParamScheduler`; empty where no optimizer was saved."""
        if not self.arguments:
            raise CompeteError(f"{folder} holds no training arguments: it was not saved by megatron.training")

    def read(self, key: str, index: tuple[int, ...] = ()) -> Tensor:
        """The tensor `key`, or its slice at `index` along the leading axes; contiguous, on the CPU.

        Raises:
            CompeteError: a part of it is missing or damaged.
        """
        shape = self.tensors[key].shape[len(index) :]
        chunks = self._chunks_by_index(key, len(index)).get(index, ())
        if len(chunks) == 1 and tuple(chunks[0].sizes[len(index) :]) == shape:
            return self._part(key, chunks[0], index).contiguous()  # no second copy of a large tensor
        whole = torch.empty(shape, dtype=self.tensors[key].dtype)
        filled = 0
        for chunk in chunks:
            part = self._part(key, chunk, index)
            ends = (start + size for start, size in zip(chunk.offsets, chunk.sizes))
            place = tuple(slice(start, end) for start, end in zip(chunk.offsets, ends))[len(index) :]
            if part.dtype != whole.dtype or part.shape != whole[place].shape:
                raise CompeteError(
                    f"{self.folder} is damaged: the part of {key} at {tuple(chunk.offsets)} is no part of it"
                )
            whole[place] = part
            filled += part.numel()
        if filled != whole.numel():
            raise CompeteError(f"{self.folder} is damaged: {filled} of {whole.numel()} values of {key} are there")
        return whole

    def _part(self, key: str, chunk: ChunkStorageMetadata, index: tuple[int, ...]) -> Tensor:
        """What `chunk` holds of the slice at `index`."""
        return self._load_chunk(key, chunk)[tuple(at - start for at, start in zip(index, chunk.offsets))]

    def _group_chunks(self, key: str, axes: int) -> dict[tuple[int, ...], list[ChunkStorageMetadata]]:
        """Chunks of `key` by the indices along the first `axes` axes that they cover."""
        groups: dict[tuple[int, ...], list[ChunkStorageMetadata]] = {}
        chunks = {tuple(chunk.offsets): chunk for chunk in self._entries[key].chunks}.values()
        self._check_sizes(key, [tuple(chunk.sizes) for chunk in chunks])
        for chunk in chunks:
            ranges = [range(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes)][:axes]
            for index in product(*ranges):
                groups.setdefault(index, []).append(chunk)
        return groups

    def _check_sizes(self, key: str, sizes: list[tuple[int, ...]]) -> None:
        """No more memory is asked for than there are bytes in the files."""
        info = self.tensors[key]
        held = max(math.prod(info.shape), sum(map(math.prod, sizes))) * info.dtype.itemsize
        if held > self._bytes:
            raise CompeteError(
                f"{self.folder} is damaged: {key} has {held} bytes, and all files together {self._bytes}"
            )

    def _load_chunk(self, key: str, chunk: ChunkStorageMetadata) -> Tensor:
        name = f"{key} at {tuple(chunk.offsets)} in {self.folder}"
        with self._open(MetadataIndex(key, chunk.offsets), name) as stream:
            tensor = load_tensor(stream, name)
        if tensor.numel() != math.prod(chunk.sizes):
            raise CompeteError(f"{name} is damaged: shape {tuple(tensor.shape)} instead of {tuple(chunk.sizes)}")
        return tensor.reshape(chunk.sizes)

    def _open(self, index: MetadataIndex, name: str) -> "Section":
        """The part of a file that the index names."""
        info = self._storage.get(index)
        if info is None or getattr(info, "transform_descriptors", None):
            raise CompeteError(f"{name} is not in the index, or compressed")
        path = path_within(self.folder, info.relative_path, self.folder / METADATA)
        try:
            section = Section(path, info.offset, info.length)
        except OSError as error:
            raise CompeteError(f"{name} cannot be read: {error.strerror} ({path.name})") from error
        if section.is_short():
            section.close()
            raise CompeteError(f"{name} is damaged: the file {path.name} ends too early")
        return section

    def _load_common(self) -> dict[str, Any]:
        legacy = self.folder / LEGACY_COMMON_STATE
        if legacy.is_file():
            common = load_plain(legacy.read_bytes(), str(legacy))
        else:
            name = f"the common state of {self.folder}"
            with self._open(MetadataIndex(COMMON_STATE), name) as stream:
                common = load_plain(stream.read(), name)
        if isinstance(common, list) and len(common) == 1:  # Megatron wraps an object's shards in a list
            common = common[0]
        if not isinstance(common, dict):
            raise CompeteError(f"the common state of {self.folder} is damaged: it is a {type(common).__name__}")
        return common
