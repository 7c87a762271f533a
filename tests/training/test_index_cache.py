"""Files of the dataset cache are whole or not there."""

import inspect
from pathlib import Path
from types import ModuleType

import numpy
import pytest
from megatron.core.datasets import blended_dataset, gpt_dataset

from megatron_compete.common.errors import CompeteError
from megatron_compete.training.index_cache import whole_files


def test_a_kill_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = numpy.save

    def killed(file: object, array: numpy.ndarray) -> None:
        upstream(file, array[: len(array) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(numpy, "save", killed)
    with whole_files(), pytest.raises(KeyboardInterrupt):
        gpt_dataset.numpy.save(str(tmp_path / "index.npy"), numpy.arange(10))
    assert not (tmp_path / "index.npy").exists()


def test_a_file_is_written_and_read(tmp_path: Path) -> None:
    path = str(tmp_path / "index.npy")
    with whole_files():
        gpt_dataset.numpy.save(path, numpy.arange(10))
        assert gpt_dataset.safe_numpy_load(path, mmap_mode="r").tolist() == list(range(10))
    assert [file.name for file in tmp_path.iterdir()] == ["index.npy"]
    assert gpt_dataset.numpy is numpy


@pytest.mark.parametrize("bytes_left", [0, 5, 100, 150])
def test_a_damaged_file_is_named(bytes_left: int, tmp_path: Path) -> None:
    path = tmp_path / "index.npy"
    numpy.save(path, numpy.arange(10))
    path.write_bytes(path.read_bytes()[:bytes_left])
    with whole_files(), pytest.raises(CompeteError, match=r"is damaged .*remove it, and the next start builds it anew"):
        gpt_dataset.safe_numpy_load(str(path), allow_pickle=True, mmap_mode="r")


@pytest.mark.parametrize("module", [gpt_dataset, blended_dataset])
def test_upstream_still_writes_in_place(module: ModuleType) -> None:
    assert module.numpy is numpy and "numpy.save(path_to_" in inspect.getsource(module)
