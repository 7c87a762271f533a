"""Tensors into safetensors files of bounded size, as `save_pretrained` names them, one tensor in memory at a time.

Not the library's `serialize_file`: it wants all tensors of a file at once, 5 GB at the default size. The format is eight bytes of header length, a
JSON header and the tensors' bytes (huggingface.co/docs/safetensors): with shapes known beforehand the header comes
first and tensors follow as they are made. `safe_open` checks every file afterwards.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from megatron_compete.checkpoint.reader import TensorInfo

INDEX = "model.safetensors.index.json"
DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
ALIGNMENT = 8


def write_safetensors(
    folder: Path, infos: Mapping[str, TensorInfo], tensors: Iterable[tuple[str, Tensor]], max_shard_bytes: int
) -> list[Path]:
    """Write `model.safetensors`, or numbered shards with an index.

    Args:
        folder: exists.
        infos: shape and dtype of every tensor, in the order of `tensors`.
        tensors: name and tensor.
        max_shard_bytes: a shard holds as many tensors as fit, and at least one.
    Returns:
        The files that hold tensors.
    """
    sizes = {name: nbytes(info) for name, info in infos.items()}
    shards = plan_shards(sizes, max_shard_bytes)
    files = [folder / name for name in shard_names(len(shards))]
    stream = iter(tensors)
    for names, path in zip(shards, files):
        _write_shard(path, {name: infos[name] for name in names}, stream)
        _check_readable(path, names)
    if len(files) > 1:
        _write_index(folder, sizes, {name: path.name for names, path in zip(shards, files) for name in names})
    return files


def nbytes(info: TensorInfo) -> int:
    """Bytes of a tensor."""
    return torch.Size(info.shape).numel() * info.dtype.itemsize


def _write_shard(path: Path, infos: Mapping[str, TensorInfo], stream: Iterator[tuple[str, Tensor]]) -> None:
    with path.open("wb") as file:
        file.write(header(infos))
        for planned, info in infos.items():
            name, tensor = next(stream)
            if (name, tuple(tensor.shape), tensor.dtype) != (planned, tuple(info.shape), info.dtype):
                raise AssertionError(f"{name} {tensor.shape} {tensor.dtype} came where {planned} {info} was planned")
            _write_tensor(file, tensor)


def header(infos: Mapping[str, TensorInfo]) -> bytes:
    """Length and JSON header of a file with these tensors one after another, padded with spaces."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, info in infos.items():
        start, end = end, end + nbytes(info)
        entries[name] = {"dtype": DTYPE_NAMES[info.dtype], "shape": list(info.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _write_tensor(file: BinaryIO, tensor: Tensor) -> None:
    if tensor.numel():
        file.write(memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy()))


def _check_readable(path: Path, names: list[str]) -> None:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as opened:
        if set(opened.keys()) != set(names):
            raise AssertionError(f"{path} does not hold what was written")


def plan_shards(sizes: Mapping[str, int], max_shard_bytes: int) -> list[list[str]]:
    """Names of the tensors of each shard, in order."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def shard_names(count: int) -> list[str]:
    """File names of `count` shards."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _write_index(folder: Path, sizes: Mapping[str, int], weight_map: Mapping[str, str]) -> None:
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(weight_map)}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
