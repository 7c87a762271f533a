"""Shards, their names and their index."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_compete.checkpoint.safetensors_writer import plan_shards, write_safetensors

TENSORS = {name: torch.full((size,), float(size)) for name, size in (("a", 3), ("b", 4), ("c", 20), ("d", 1))}
SIZES = {name: tensor.nbytes for name, tensor in TENSORS.items()}


def test_one_file_has_no_index(tmp_path: Path) -> None:
    assert write_safetensors(tmp_path, SIZES, TENSORS.items(), 1000) == [tmp_path / "model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    held = load_file(tmp_path / "model.safetensors")
    assert all(held[name].equal(tensor) for name, tensor in TENSORS.items())


def test_shards_are_bounded_and_a_large_tensor_has_one_of_its_own(tmp_path: Path) -> None:
    assert plan_shards(SIZES, 28) == [["a", "b"], ["c"], ["d"]]
    files = write_safetensors(tmp_path, SIZES, TENSORS.items(), 28)
    assert [path.name for path in files] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 112}
    assert {name: list(load_file(tmp_path / file)) for name, file in index["weight_map"].items()} == {
        "a": ["a", "b"], "b": ["a", "b"], "c": ["c"], "d": ["d"],
    }  # fmt: skip


def test_files_are_as_readable_as_their_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (file,) = write_safetensors(tmp_path, SIZES, TENSORS.items(), 1000)
    assert file.stat().st_mode & 0o777 == 0o644


def test_another_order_than_planned_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="another order"):
        write_safetensors(tmp_path, SIZES, reversed(TENSORS.items()), 1000)
