"""Is a checkpoint whole? Its files against its index, and its index against itself; no tensor has to be read for it.

A `torch_dist` checkpoint's index says for every chunk in which file it lies, where it starts and how long it is. So a
file that was cut short in a copy is known by its size, a file of another save by its name, and a chunk that no rank
wrote by the hole it leaves in its tensor. Safetensors files say the same of themselves in their headers.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorStorageMetadata

from megatron_compete.checkpoint.hf_reader import CONFIG as HF_CONFIG
from megatron_compete.checkpoint.hf_reader import disagreements, passed_over, read_json, weight_files
from megatron_compete.checkpoint.location import CONFIG, METADATA
from megatron_compete.checkpoint.reader import LEGACY_COMMON_STATE, TorchDistCheckpoint, tensor_entries
from megatron_compete.checkpoint.restricted import load_metadata
from megatron_compete.checkpoint.safetensors_reader import SafetensorsFile
from megatron_compete.common.errors import CompeteError
from megatron_compete.common.files import path_within

BESIDE_THE_INDEX = frozenset({CONFIG, METADATA, LEGACY_COMMON_STATE, "integrity_manifest.json"})
"""Files that Megatron writes into a checkpoint's folder without naming them in its index."""


@dataclass
class Findings:
    """What an inspection saw, and all that is wrong."""

    folder: Path
    files: int = 0
    bytes: int = 0
    tensors: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a reader should know that is not wrong."""

    def __str__(self) -> str:
        state = "whole" if not self.problems else f"{len(self.problems)} problem{'s' * (len(self.problems) > 1)}"
        return f"{self.folder}: {state}; {self.tensors} tensors, {self.files} files, {self.bytes / 1e6:.1f} MB"


def inspect_torch_dist(folder: Path, read: bool = False) -> Findings:
    """Inspect one iteration's folder of Megatron's (`find_checkpoint`).

    Args:
        read: also read every tensor, which finds files whose size is right and whose content is not.
    """
    found = Findings(folder)
    try:
        index = load_metadata(folder / METADATA)
        entries = tensor_entries(index, folder / METADATA)
        checkpoint = TorchDistCheckpoint(folder)
    except CompeteError as error:
        found.problems.append(str(error))
        return found
    found.tensors = len(entries)
    found.problems += _wrong_files(folder, index, found)
    for key, entry in entries.items():
        found.problems += _wrong_chunks(key, entry, index.storage_data)
    if read and not found.problems:
        found.problems += _unreadable(checkpoint)
    return found


def _wrong_files(folder: Path, index: Metadata, found: Findings) -> Iterator[str]:
    """Files that are missing, too short or too long, and files that nothing names."""
    ends: dict[str, int] = defaultdict(int)
    for info in index.storage_data.values():
        ends[info.relative_path] = max(ends[info.relative_path], info.offset + info.length)
    for name, end in sorted(ends.items()):
        try:
            path = path_within(folder, name, folder / METADATA)
        except CompeteError as error:
            yield str(error)
            continue
        if not path.is_file():
            yield f"{name} is missing: {end} bytes of tensors lie in it"
            continue
        size = path.stat().st_size
        found.files += 1
        found.bytes += size
        if size < end:
            yield f"{name} was cut short: {size} bytes instead of {end}"
        elif size > end:
            yield f"{name} is not this checkpoint's: {size} bytes, and the index knows {end}"
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name not in ends and path.name not in BESIDE_THE_INDEX:
            yield f"{path.name} is foreign: the index does not name it"


def _wrong_chunks(key: str, entry: TensorStorageMetadata, storage: dict[MetadataIndex, Any]) -> Iterator[str]:
    """What keeps the chunks of a tensor from being exactly that tensor."""
    chunks = list({(tuple(chunk.offsets), tuple(chunk.sizes)): chunk for chunk in entry.chunks}.values())
    itemsize = entry.properties.dtype.itemsize
    for chunk in chunks:
        info = storage.get(MetadataIndex(key, chunk.offsets))
        if info is None:
            yield f"{key}: the index does not say where its chunk at {tuple(chunk.offsets)} lies"
        elif info.length < torch.Size(chunk.sizes).numel() * itemsize:
            yield f"{key}: {info.length} bytes are too few for its chunk at {tuple(chunk.offsets)} {tuple(chunk.sizes)}"
    yield from _wrong_cover(key, tuple(entry.size), chunks)


def _wrong_cover(key: str, shape: tuple[int, ...], chunks: list[ChunkStorageMetadata]) -> Iterator[str]:
    """Chunks that leave holes, overlap or reach beyond the tensor."""
    if not chunks:
        yield f"{key}: none of it was saved"
        return
    starts = np.array([tuple(chunk.offsets) for chunk in chunks], dtype=np.int64).reshape(len(chunks), len(shape))
    sizes = np.array([tuple(chunk.sizes) for chunk in chunks], dtype=np.int64).reshape(len(chunks), len(shape))
    ends = starts + sizes
    if (starts < 0).any() or (ends > np.array(shape)).any():
        yield f"{key}: a chunk reaches beyond its shape {shape}"
        return
    for number in range(len(chunks) - 1):
        rest = slice(number + 1, None)
        overlaps = ((starts[rest] < ends[number]) & (starts[number] < ends[rest])).all(axis=1)
        if overlaps.any():
            yield f"{key}: chunks overlap at {tuple(starts[number])}"
            return
    filled, wanted = int(sizes.prod(axis=1).sum()), torch.Size(shape).numel()
    if filled != wanted:
        yield f"{key}: {filled} of {wanted} values were saved, shape {shape}"


def _unreadable(checkpoint: TorchDistCheckpoint) -> Iterator[str]:
    for key in checkpoint.tensors:
        try:
            tensor = checkpoint.read(key)
        except CompeteError as error:
            yield str(error)
            continue
        if tensor.is_floating_point() and not tensor.isfinite().all():
            yield f"{key}: {int((~tensor.isfinite()).sum())} of {tensor.numel()} values are infinite or not numbers"


def inspect_hf(folder: Path, read: bool = False) -> Findings:
    """Inspect a Hugging Face folder: index, headers, sizes, and what the configuration says of them.

    Args:
        read: also read every tensor and look for values that are no numbers.
    """
    found = Findings(folder)
    try:
        config = read_json(folder / HF_CONFIG)
        names, index = weight_files(folder)
    except CompeteError as error:
        found.problems.append(str(error))
        return found
    files = _open_all(folder, names, found)
    found.problems += disagreements(index, files)
    found.notes += [
        f"{name} is passed over: it is not of the model" for name in passed_over(folder, dict.fromkeys(names))
    ]
    found.notes += _dtypes(config, files)
    found.tensors = sum(len(file.tensors) for file in files.values())
    if read and not found.problems:
        found.problems += _not_numbers(files.values())
    return found


def _open_all(folder: Path, names: Iterable[str], found: Findings) -> dict[str, SafetensorsFile]:
    files = {}
    for name in names:
        if not (folder / name).is_file():
            found.problems.append(f"{name} is missing")
            continue
        found.files += 1
        found.bytes += (folder / name).stat().st_size
        try:
            files[name] = SafetensorsFile(folder / name)
        except CompeteError as error:
            found.problems.append(str(error))
    return files


def _dtypes(config: dict[str, Any], files: dict[str, SafetensorsFile]) -> Iterator[str]:
    """A tensor of another precision than the configuration's is loaded, but seldom what was meant."""
    named = config.get("dtype") or config.get("torch_dtype")
    stored = {info.info.dtype for file in files.values() for info in file.tensors.values()}
    floating = {str(dtype).removeprefix("torch.") for dtype in stored if dtype.is_floating_point}
    if isinstance(named, str) and floating and floating != {named}:
        yield f"{HF_CONFIG} says {named}, and the tensors are {', '.join(sorted(floating))}"


def _not_numbers(files: Iterable[SafetensorsFile]) -> Iterator[str]:
    for file in files:
        for name, stored in file.tensors.items():
            if stored.info.dtype.is_floating_point and not file.read(name).isfinite().all():
                yield f"{name} in {file.path.name}: some values are infinite or not numbers"
