"""What is wrong at the start is said at the start: the data, its cache, the save folder."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.data.datasets import write_dataset
from tests.faults.injected import RUN, failing, kill_in_index_cache, killed, losses, train
from tests.resilience.saving.test_folder import other_process  # noqa: F401  a fixture

pytestmark = pytest.mark.faults


@pytest.fixture
def data(tmp_path: Path) -> str:
    """A dataset of the test model's tokens."""
    draw = np.random.default_rng(0)
    return write_dataset(tmp_path / "data", [[draw.integers(0, 120, 60).tolist()] for _ in range(100)])


@pytest.mark.parametrize("file", ["document_index", "shuffle_index"])
def test_a_kill_while_the_index_cache_is_built(file: str, data: str, tmp_path: Path) -> None:
    flags = f"{RUN} --data-path {data} --split 100,0,0"
    train(2, f"{flags} --data-cache-path {tmp_path}/whole --tensorboard-dir {tmp_path}/undisturbed")
    killed(2, f"{flags} --data-cache-path {tmp_path}/torn", (kill_in_index_cache, (file,)))
    train(2, f"{flags} --data-cache-path {tmp_path}/torn --tensorboard-dir {tmp_path}/again")
    assert losses(tmp_path / "again") == losses(tmp_path / "undisturbed")


def test_a_torn_index_cache_of_another_trainer_is_named(data: str, tmp_path: Path) -> None:
    flags = f"{RUN} --data-path {data} --split 100,0,0 --data-cache-path {tmp_path}/cache"
    train(2, flags)
    path = next((tmp_path / "cache").glob("*shuffle_index.npy"))
    path.write_bytes(path.read_bytes()[:100])
    said = failing(2, flags)
    assert said.count(f"error: {path} is damaged") == 1 and "remove it" in said
    path.unlink()
    train(2, flags)


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_truncated_data_file(suffix: str, data: str) -> None:
    path = Path(data + suffix)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    said = failing(2, f"{RUN} --data-path {data}")
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and f"{data}" in errors[0] and "SystemExit: 2" in said


def test_a_second_job_on_the_same_folder(other_process) -> None:  # noqa: F811
    process, folder = other_process
    said = failing(2, f"{RUN} --save {folder}")
    assert said.count(f"error: --save {folder} is in use: process {process.pid}") == 1 and "SystemExit: 2" in said


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A file system that cannot be written; permissions would not keep root out."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a read-only file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_save_folder_that_cannot_be_written(read_only: Path) -> None:
    said = failing(2, f"{RUN} --save {read_only}")
    assert said.count(f"error: --save {read_only} cannot be written") == 1 and "Read-only file system" in said
