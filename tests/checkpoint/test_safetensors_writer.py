"""Shards, their names, their bytes and their index."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_compete.checkpoint.reader import TensorInfo
from megatron_compete.checkpoint.safetensors_writer import plan_shards, write_safetensors

TENSORS = {name: torch.full((size,), float(size)) for name, size in (("a", 3), ("b", 4), ("c", 20), ("d", 1))}
SIZES = {name: tensor.nbytes for name, tensor in TENSORS.items()}
INFOS = {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in TENSORS.items()}


def test_one_file_has_no_index(tmp_path: Path) -> None:
    assert write_safetensors(tmp_path, INFOS, TENSORS.items(), 1000) == [tmp_path / "model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    held = load_file(tmp_path / "model.safetensors")
    assert all(held[name].equal(tensor) for name, tensor in TENSORS.items())


def test_what_the_library_reads_is_what_it_would_have_written(tmp_path: Path) -> None:
    tensors = {
        "w": torch.randn(5, 3),
        "half": torch.randn(3, 7).to(torch.bfloat16),
        "other half": torch.randn(1).to(torch.float16),
        "view": torch.randn(8, 6)[::2, 1:],
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 4),
    }
    infos = {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    write_safetensors(tmp_path, infos, tensors.items(), 10**6)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "library.safetensors")
    ours, theirs = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "library.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and ours[name].equal(tensor)


def test_shards_are_bounded_and_a_large_tensor_has_one_of_its_own(tmp_path: Path) -> None:
    assert plan_shards(SIZES, 28) == [["a", "b"], ["c"], ["d"]]
    files = write_safetensors(tmp_path, INFOS, TENSORS.items(), 28)
    assert [path.name for path in files] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 112}
    assert {name: list(load_file(tmp_path / file)) for name, file in index["weight_map"].items()} == {
        "a": ["a", "b"], "b": ["a", "b"], "c": ["c"], "d": ["d"],
    }  # fmt: skip


def test_tensors_are_made_one_after_another(tmp_path: Path) -> None:
    """A tensor is written before the next is asked for."""
    file = tmp_path / "model.safetensors"
    sizes = []

    def stream():  # type: ignore[no-untyped-def]
        for name in ("one", "two", "three"):
            sizes.append(file.stat().st_size if file.exists() else 0)
            yield name, torch.ones(100_000)

    write_safetensors(
        tmp_path, dict.fromkeys(("one", "two", "three"), TensorInfo((100_000,), torch.float32)), stream(), 10**9
    )
    assert sizes[1] >= sizes[0] + 300_000 and sizes[2] >= sizes[1] + 300_000


def test_another_order_than_planned_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="came where a"):
        write_safetensors(tmp_path, INFOS, reversed(TENSORS.items()), 1000)
