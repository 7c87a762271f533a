"""Reading a checkpoint's pickles without running anything from them.

A `torch_dist` checkpoint holds two: `.metadata`, a plain pickle of torch.distributed.checkpoint's dataclasses, and
the common state (the trainer's arguments and counters), a `torch.save` of dictionaries. The first is read by an
unpickler that knows those dataclasses and nothing else (`torch.load(weights_only=True)` reads no plain pickle). The second is read with `weights_only=True`. Of the classes
that it names, `argparse.Namespace` and the enums of modules that are loaded anyway are made; any other becomes an
`Opaque` value, a name without code. Nothing is imported on a checkpoint's word.
"""

import argparse
import io
import pickle
import sys
import types
from collections import OrderedDict
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
import torch.serialization
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.metadata import Metadata

from megatron_compete.common.errors import CompeteError


class Opaque:
    """A value whose class is not loaded: remembers what it was made from, does nothing."""

    def __new__(cls, *arguments: object) -> "Opaque":
        value = super().__new__(cls)
        value.arguments = arguments
        return value

    arguments: tuple[object, ...]

    def __setstate__(self, state: object) -> None:
        self.arguments = (*self.arguments, state)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.arguments))})"


_METADATA_CLASSES = {
    (metadata.__name__, name): getattr(metadata, name)
    for name in (
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
        "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
    )
} | {
    (filesystem.__name__, "_StorageInfo"): filesystem._StorageInfo,
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    ("collections", "OrderedDict"): OrderedDict,
    # Megatron-Core 0.14 and 0.15 wrote subclasses of their own.
    ("megatron.core.dist_checkpointing.strategies.torch", "MCoreMetadata"): Metadata,
    ("megatron.core.dist_checkpointing.strategies.torch", "MCoreSavePlan"): Opaque,
}  # fmt: skip


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _METADATA_CLASSES:
            return _METADATA_CLASSES[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def load_metadata(path: Path) -> Metadata:
    """The index of a torch.distributed.checkpoint folder.

    Raises:
        CompeteError: not such an index, or one that asks for any other class or function.
    """
    try:
        with path.open("rb") as stream:
            loaded = _MetadataUnpickler(stream).load()
    except Exception as error:  # a pickle can fail in any way
        raise CompeteError(f"{path} is not the index of a checkpoint, nothing of it was run: {error}") from error
    tables = (getattr(loaded, name, None) for name in ("storage_data", "state_dict_metadata"))
    if not isinstance(loaded, Metadata) or not all(isinstance(table, dict) for table in tables):
        raise CompeteError(f"{path} is not the index of a checkpoint: it holds a {type(loaded).__name__}")
    return loaded


def load_plain(data: bytes, name: str) -> Any:
    """What `torch.save` wrote, as plain values; other classes come back `Opaque`.

    Args:
        data: the file's bytes.
        name: what to call it in an error.
    Raises:
        CompeteError: damaged, or a pickle that does more than state values.
    """
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data))
        allowed: list[Any] = [(_harmless(full_name), full_name) for full_name in unknown]
        with torch.serialization.safe_globals(allowed):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged zip, refused pickle: torch raises half a dozen kinds
        raise CompeteError(f"{name} is damaged, or would run code (none was run): {_reason(error)}") from error


def _harmless(full_name: str) -> type:
    """What stands for the class that a checkpoint names."""
    module, _, name = full_name.rpartition(".")
    known = getattr(sys.modules.get(module), name, None)
    if known is argparse.Namespace or (isinstance(known, type) and issubclass(known, Enum)):
        return known
    return types.new_class(name, (Opaque,))


def load_tensor(stream: io.IOBase, name: str) -> torch.Tensor:
    """One tensor that `torch.save` wrote.

    Args:
        stream: the file, at its start; read straight into the tensor where it can `readinto`.
        name: what to call it in an error.
    Raises:
        CompeteError: damaged, or something else than a tensor.
    """
    try:
        loaded = torch.load(cast(BinaryIO, stream), map_location="cpu", weights_only=True)
    except Exception as error:
        raise CompeteError(f"{name} is damaged: {_reason(error)}") from error
    if not isinstance(loaded, torch.Tensor):
        raise CompeteError(f"{name} is damaged: it holds a {type(loaded).__name__} instead of a tensor")
    return loaded


def _reason(error: Exception) -> str:
    """What torch found, without its advice to load with `weights_only=False`."""
    text = str(error)
    found = text.partition("WeightsUnpickler error:")[2] or text
    return found.strip().partition("\n")[0]
