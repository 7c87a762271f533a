"""A `torch_dist` checkpoint in one process: no process group, no CUDA, no model, one slice in memory at a time.

Megatron saves global tensors in pieces (chunks), one per rank that owned a part; the index says where each lies. So
the layout that wrote a checkpoint does not matter to a reader that puts chunks together by their offsets. Layers that
are all alike are stacked into one tensor with a leading layer axis, and experts into one with a leading expert axis
(`TransformerBlock.sharded_state_dict`, `SequentialMLP.sharded_state_dict`): `read` takes such an index.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path, PurePath
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata

from megatron_compete.checkpoint.location import METADATA
from megatron_compete.checkpoint.restricted import load_metadata, load_plain, load_tensor
from megatron_compete.errors import CompeteError

COMMON_STATE = "common_state/shard_0_1"
"""Key of arguments and counters since Megatron-Core 0.19; before, they were the file `common.pt`."""
LEGACY_COMMON_STATE = "common.pt"


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


class TorchDistCheckpoint:
    """One checkpoint folder; `find_checkpoint` says whether it is whole.

    Raises:
        CompeteError: the index or the common state is damaged, or they want code to be run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = load_metadata(folder / METADATA)
        self._storage: dict[MetadataIndex, Any] = index.storage_data
        self._entries = {
            key: entry for key, entry in index.state_dict_metadata.items() if isinstance(entry, TensorStorageMetadata)
        }
        self.tensors: dict[str, TensorInfo] = {
            key: TensorInfo(tuple(entry.size), entry.properties.dtype) for key, entry in self._entries.items()
        }
        self._chunks_by_index = cache(self._group_chunks)
        common = self._load_common()
        self.arguments: dict[str, Any] = vars(common["args"]) if "args" in common else {}
        self.iteration: int = int(common.get("iteration", 0))
        if not self.arguments:
            raise CompeteError(f"{folder} holds no training arguments: it was not saved by megatron.training")

    def read(self, key: str, index: tuple[int, ...] = ()) -> Tensor:
        """The tensor `key`, or its slice at `index` along the leading axes; contiguous, on the CPU.

        Raises:
            CompeteError: a part of it is missing or damaged.
        """
        shape = self.tensors[key].shape[len(index) :]
        whole = torch.empty(shape, dtype=self.tensors[key].dtype)
        filled = 0
        for chunk in self._chunks_by_index(key, len(index)).get(index, ()):
            part = self._load_chunk(key, chunk)[tuple(at - start for at, start in zip(index, chunk.offsets))]
            ends = (start + size for start, size in zip(chunk.offsets, chunk.sizes))
            place = tuple(slice(start, end) for start, end in zip(chunk.offsets, ends))[len(index) :]
            whole[place] = part
            filled += part.numel()
        if filled != whole.numel():
            raise CompeteError(f"{self.folder} is damaged: {filled} of {whole.numel()} values of {key} are there")
        return whole

    def _group_chunks(self, key: str, axes: int) -> dict[tuple[int, ...], list[ChunkStorageMetadata]]:
        """Chunks of `key` by the indices along the first `axes` axes that they cover."""
        groups: dict[tuple[int, ...], list[ChunkStorageMetadata]] = {}
        for chunk in {tuple(chunk.offsets): chunk for chunk in self._entries[key].chunks}.values():
            ranges = [range(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes)][:axes]
            for index in product(*ranges):
                groups.setdefault(index, []).append(chunk)
        return groups

    def _load_chunk(self, key: str, chunk: ChunkStorageMetadata) -> Tensor:
        name = f"{key} at {tuple(chunk.offsets)} in {self.folder}"
        tensor = load_tensor(self._bytes(MetadataIndex(key, chunk.offsets), name), name)
        if tensor.numel() != chunk.sizes.numel():
            raise CompeteError(f"{name} is damaged: shape {tuple(tensor.shape)} instead of {tuple(chunk.sizes)}")
        return tensor.reshape(chunk.sizes)

    def _bytes(self, index: MetadataIndex, name: str) -> bytes:
        info = self._storage.get(index)
        if info is None or getattr(info, "transform_descriptors", None):
            raise CompeteError(f"{name} is not in the index, or compressed")
        path = PurePath(info.relative_path)
        if path.is_absolute() or ".." in path.parts:
            raise CompeteError(f"{self.folder / METADATA} points outside of its folder: {info.relative_path}")
        try:
            with (self.folder / path).open("rb") as stream:
                stream.seek(info.offset)
                data = stream.read(info.length)
        except OSError as error:
            raise CompeteError(f"{name} cannot be read: {error.strerror} ({path})") from error
        if len(data) != info.length:
            raise CompeteError(f"{name} is damaged: the file {path} ends too early")
        return data

    def _load_common(self) -> dict[str, Any]:
        legacy = self.folder / LEGACY_COMMON_STATE
        if legacy.is_file():
            common = load_plain(legacy.read_bytes(), str(legacy))
        else:
            name = f"the common state of {self.folder}"
            common = load_plain(self._bytes(MetadataIndex(COMMON_STATE), name), name)
        if isinstance(common, list) and len(common) == 1:  # Megatron wraps an object's shards in a list
            common = common[0]
        if not isinstance(common, dict):
            raise CompeteError(f"the common state of {self.folder} is damaged: it is a {type(common).__name__}")
        return common
