"""Writing a `torch_dist` checkpoint in one process: no process group, no model, one slice in memory at a time.

torch.distributed.checkpoint plans a save as write items, one per chunk of a tensor, and asks for each item's data only
when its turn has come (`SavePlanner.resolve_data`). So the chunks can be made as they are written. The plan is cut
into parts of bounded size, which torch takes for the plans of as many ranks: one file each. Whatever layout loads the
checkpoint reads the parts of chunks it needs.

Beside the tensors lie objects: the common state, with the arguments, and an "extra state" for every linear layer and
norm, which Megatron asks for by name. They hold Transformer Engine's FP8 scales; None says that there are none.
`metadata.json` comes last (`dist_checkpointing.save`).
"""

import io
import json
import re
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter, SavePlan
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, StorageMeta, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from megatron_compete.checkpoint.location import CONFIG, RELEASE, TRACKER
from megatron_compete.checkpoint.options import Import
from megatron_compete.checkpoint.reader import COMMON_STATE

BACKEND = {"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch",
           "common_backend_version": 1}  # fmt: skip
"""`metadata.json` as Megatron's `CheckpointingConfig` reads it; versions before 0.19 want the last two."""

CHECKPOINT_VERSION = 3.0
"""Order of linear_qkv's rows that Megatron's trainer has written since 2021; older ones it would rearrange."""

PROJECTION, ATTENTION = "linear_proj", "core_attention"
"""The attention proper has an extra state, and no weight by which it is known."""


@dataclass(frozen=True)
class Chunk:
    """One chunk of a tensor that the checkpoint will hold, and how to make it."""

    key: str
    index: tuple[int, ...]
    """Where it is along the leading axes of the tensor, whose sizes are `stack`."""
    stack: tuple[int, ...]
    shape: tuple[int, ...]
    """Of the slice at `index`."""
    dtype: torch.dtype
    make: Callable[[], Tensor]
    """Gives the slice; called once, when it is written."""

    @property
    def offsets(self) -> tuple[int, ...]:
        """Of its first value in the tensor."""
        return self.index + (0,) * len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_release(folder: Path, arguments: Mapping[str, Any], chunks: Sequence[Chunk], file_bytes: int = Import.file_bytes) -> int:  # fmt: skip
    """Write a `--load` folder from which training starts at iteration 0, without optimizer state.

    Args:
        folder: exists and holds no checkpoint.
        arguments: of the model, by Megatron's names.
        chunks: every chunk of every tensor, in the order in which they are to be made.
        file_bytes: size of a file at most, if no chunk is larger.
    Returns:
        Number of files that hold tensors.
    """
    release = folder / RELEASE
    release.mkdir()
    common = {"args": Namespace(**arguments), "checkpoint_version": CHECKPOINT_VERSION, "iteration": 0}
    objects = [
        WriteItem(MetadataIndex(key), WriteItemType.BYTE_IO)
        for key in dict.fromkeys((COMMON_STATE, *_extra_states(chunks)))
    ]
    parts = [objects, *(list(map(_write_item, part)) for part in _parts(chunks, file_bytes))]
    _write(release, [SavePlan(items) for items in parts], _LazyPlanner(common, chunks))
    (release / CONFIG).write_text(json.dumps(BACKEND))
    (folder / TRACKER).write_text(RELEASE)
    return len(parts) - 1


def _write(folder: Path, plans: list[SavePlan], planner: "_LazyPlanner") -> None:
    """What `torch.distributed.checkpoint.save` does on as many ranks as there are plans."""
    writer = _Writer(folder)
    writer.set_up_storage_writer(is_coordinator=True)
    plans, metadata = planner.create_global_plan(plans)  # checks that chunks fill every tensor and do not overlap
    results = [writer.write_data(plan, planner).wait() for plan in writer.prepare_global_plan(plans)]
    writer.finish(metadata, results)


def _parts(chunks: Iterable[Chunk], file_bytes: int) -> Iterator[list[Chunk]]:
    """The chunks in order, cut into files."""
    part: list[Chunk] = []
    filled = 0
    for chunk in chunks:
        if part and filled + chunk.nbytes > file_bytes:
            yield part
            part, filled = [], 0
        part.append(chunk)
        filled += chunk.nbytes
    yield part


class _Writer(FileSystemWriter):
    def storage_meta(self) -> StorageMeta:
        """Without the folder's path, which torch pickles as a class of the machine that wrote it."""
        return StorageMeta()


class _LazyPlanner(DefaultSavePlanner):
    """Makes the data of a write item when the writer asks for it."""

    def __init__(self, common: dict[str, Any], chunks: Iterable[Chunk]) -> None:
        super().__init__(flatten_state_dict=False)
        self.common = common
        self.chunks = {(chunk.key, chunk.offsets): chunk for chunk in chunks}

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        """The chunk of `write_item`, or the common state as Megatron stores an object: a list of its shards."""
        if write_item.type == WriteItemType.BYTE_IO:
            stream = io.BytesIO()
            torch.save([self.common if write_item.index.fqn == COMMON_STATE else None], stream)
            return stream
        offsets = write_item.index.offset
        assert offsets is not None
        chunk = self.chunks[write_item.index.fqn, tuple(offsets)]
        made = chunk.make()
        if (tuple(made.shape), made.dtype) != (chunk.shape, chunk.dtype):
            raise AssertionError(f"{chunk.key} at {chunk.index} was made as {made.dtype} {tuple(made.shape)}")
        return made.reshape((1,) * len(chunk.stack) + chunk.shape).contiguous()


def _extra_states(chunks: Iterable[Chunk]) -> Iterator[str]:
    """Keys of the extra states of the modules whose weights are given, as `ShardedObject.unique_key` makes them.

    Which modules have one depends on the implementation; nobody asks for those that there are too many.
    """
    for chunk in chunks:
        found = re.fullmatch(r"(.+)\.weight(\.\w+)?", chunk.key)  # the last is that of a piece
        if not found:
            continue
        for index, stack in _shards(chunk):
            place = "_".join(".".join(map(str, numbers)) for numbers in (index or (0,), stack or (1,)))
            yield f"{found[1]}._extra_state/shard_{place}"
            if found[1].endswith(PROJECTION):
                yield f"{found[1].removesuffix(PROJECTION)}{ATTENTION}._extra_state/shard_{place}"


def _shards(chunk: Chunk) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Places of the modules whose weight the chunk has: one, or every expert's."""
    if ".experts.experts." not in chunk.key or len(chunk.shape) < 3:
        yield chunk.index, chunk.stack
        return
    for expert in range(chunk.shape[0]):
        yield (*chunk.index, expert), (*chunk.stack, chunk.shape[0])


def _write_item(chunk: Chunk) -> WriteItem:
    offsets = torch.Size(chunk.offsets)
    stored = ChunkStorageMetadata(offsets, torch.Size((1,) * len(chunk.stack) + chunk.shape))
    data = TensorWriteData(stored, TensorProperties(chunk.dtype), torch.Size(chunk.stack + chunk.shape))
    return WriteItem(MetadataIndex(chunk.key, offsets), WriteItemType.SHARD, tensor_data=data)
