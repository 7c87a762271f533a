"""Tensors into safetensors files of bounded size, as `save_pretrained` names them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

INDEX = "model.safetensors.index.json"


def write_safetensors(
    folder: Path, sizes: Mapping[str, int], tensors: Iterable[tuple[str, Tensor]], max_shard_bytes: int
) -> list[Path]:
    """Write `model.safetensors`, or numbered shards with an index; at most one shard is in memory.

    Args:
        folder: exists.
        sizes: bytes of every tensor, in the order of `tensors`.
        tensors: name and contiguous tensor.
        max_shard_bytes: a shard holds as many tensors as fit, and at least one.
    Returns:
        The files that hold tensors.
    """
    from safetensors.torch import save_file

    shards = plan_shards(sizes, max_shard_bytes)
    files = [folder / name for name in shard_names(len(shards))]
    stream = iter(tensors)
    for names, path in zip(shards, files):
        held = dict(next(stream) for _ in names)
        if list(held) != names:
            raise AssertionError(f"tensors come in another order than planned: {list(held)} instead of {names}")
        save_file(held, path, metadata={"format": "pt"})
        path.chmod(folder.stat().st_mode & 0o666)  # safetensors leaves the file to its owner alone
    if len(files) > 1:
        _write_index(folder, sizes, {name: path.name for names, path in zip(shards, files) for name in names})
    return files


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
