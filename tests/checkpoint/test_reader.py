"""Reading slices of a real checkpoint, and of a damaged one."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch

from megatron_compete.checkpoint.reader import Section, TorchDistCheckpoint
from megatron_compete.checkpoint.restricted import load_metadata
from megatron_compete.common.errors import CompeteError
from tests.checkpoint import gpt

FC1 = "decoder.layers.mlp.experts.experts.linear_fc1.weight"
Saved = tuple[Path, torch.Tensor]


@pytest.fixture
def folder(saved: Saved) -> Path:
    return saved[0] / "iter_0000007"


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_arguments_and_iteration(folder: Path) -> None:
    checkpoint = TorchDistCheckpoint(folder)
    assert checkpoint.iteration == 7
    assert checkpoint.arguments.items() >= gpt.ARGUMENTS.items()
    assert checkpoint.arguments["params_dtype"] == torch.float32


def test_a_slice_is_a_slice_of_the_whole(folder: Path) -> None:
    checkpoint = TorchDistCheckpoint(folder)
    shape = checkpoint.tensors[FC1].shape
    assert shape == (4, 4, 48, 32)
    whole = checkpoint.read(FC1)
    assert whole.shape == shape
    assert checkpoint.read(FC1, (2,)).equal(whole[2])
    assert checkpoint.read(FC1, (2, 1)).equal(whole[2, 1])


def test_arguments_as_older_versions_kept_them(copied: Path) -> None:
    from argparse import Namespace

    torch.save({"args": Namespace(num_layers=3), "iteration": 12}, copied / "common.pt")
    checkpoint = TorchDistCheckpoint(copied)
    assert checkpoint.arguments == {"num_layers": 3}
    assert checkpoint.iteration == 12


def test_a_file_that_is_missing_or_short(copied: Path) -> None:
    data = sorted(copied.glob("*.distcp"))
    for file in data:
        file.write_bytes(file.read_bytes()[: 3 * file.stat().st_size // 4])
    with pytest.raises(CompeteError, match=r"is damaged|too early"):
        checkpoint = TorchDistCheckpoint(copied)
        for key in checkpoint.tensors:
            checkpoint.read(key)
    for file in data:
        file.unlink()
    with pytest.raises(CompeteError, match="No such file"):
        TorchDistCheckpoint(copied)


def test_a_chunk_that_is_missing(copied: Path) -> None:
    index = load_metadata(copied / ".metadata")
    index.state_dict_metadata[FC1].chunks.pop()
    (copied / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(CompeteError, match=r"is damaged: .* values of"):
        TorchDistCheckpoint(copied).read(FC1)


def test_an_index_that_points_elsewhere(copied: Path) -> None:
    index = load_metadata(copied / ".metadata")
    for entry in index.storage_data.values():
        entry.relative_path = "../../secret"
    (copied / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(CompeteError, match=r"names the file .* which is not in its folder"):
        TorchDistCheckpoint(copied)


def test_a_checkpoint_of_something_else(copied: Path) -> None:
    torch.save({"iteration": 3}, copied / "common.pt")
    with pytest.raises(CompeteError, match="no training arguments"):
        TorchDistCheckpoint(copied)


def test_a_section_is_a_file_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(range(100)))
    with Section(file, 10, 20) as section:
        assert not section.is_short()
        assert section.read() == bytes(range(10, 30))
        assert section.read() == b""
        assert section.seek(-3, 2) == 17
        assert section.read(100) == bytes(range(27, 30))
        section.seek(5)
        buffer = bytearray(4)
        assert section.readinto(buffer) == 4 and section.tell() == 9
        assert buffer == bytes(range(15, 19))
    with Section(file, 90, 20) as section:
        assert section.is_short()


def test_a_slice_of_one_chunk_is_not_copied_into_a_larger_one(folder: Path) -> None:
    checkpoint = TorchDistCheckpoint(folder)
    expert = checkpoint.read(FC1, (2, 1))
    assert expert.is_contiguous()
    assert expert.untyped_storage().nbytes() == expert.nbytes
