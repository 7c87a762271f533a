"""A save folder belongs to one job, and it is known at the start whether it can be written."""

import json
import multiprocessing
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.resilience.saving.folder import LOCK, Lock, probe, release_locks, take_lock

HELD = """
import sys, time
from pathlib import Path
from megatron_compete.resilience.saving.folder import Lock
Lock(Path(sys.argv[1]), heartbeat=0.05).take()
print("taken", flush=True)
time.sleep(600)
"""


def lock(folder: Path, patience: float = 1.0) -> Lock:
    return Lock(folder / LOCK, heartbeat=0.05, patience=patience)


@pytest.fixture(scope="module")
def other_process(tmp_path_factory: pytest.TempPathFactory):
    """A process that holds the lock of a folder, and the folder."""
    folder = tmp_path_factory.mktemp("held")
    process = subprocess.Popen([sys.executable, "-c", HELD, str(folder / LOCK)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "taken\n"
    yield process, folder
    process.kill()
    process.wait()


def pretend(folder: Path, **changes: object) -> None:
    """A lock of another host, or of this one with `changes`."""
    owner = {"host": "elsewhere", "namespace": "pid:[1]", "pid": 1, "started": "1", "job": None, "attempt": None}
    (folder / LOCK).write_text(json.dumps({**owner, **changes}))


def test_a_second_job_is_refused_and_a_killed_one_is_not_missed(other_process) -> None:
    process, folder = other_process
    with pytest.raises(CompeteError, match=rf"--save .* is in use: process {process.pid} on {socket.gethostname()}"):
        lock(folder).take()
    process.kill()
    process.wait()
    lock(folder).take()
    assert json.loads((folder / LOCK).read_text())["pid"] == os.getpid()


def test_a_process_number_that_was_given_again(tmp_path: Path) -> None:
    own = lock(tmp_path)
    own.take()
    owner = json.loads((tmp_path / LOCK).read_text())
    own.release()
    pretend(tmp_path, **{**owner, "pid": 1})
    lock(tmp_path).take()


def test_it_is_released(tmp_path: Path) -> None:
    take_lock(tmp_path)
    assert (tmp_path / LOCK).exists()
    release_locks()
    assert not (tmp_path / LOCK).exists()


def test_another_hosts_lock_that_stands_still_is_taken_over(tmp_path: Path) -> None:
    pretend(tmp_path)
    lock(tmp_path, patience=0.2).take()
    assert json.loads((tmp_path / LOCK).read_text())["host"] == socket.gethostname()


def _keep_moving(path: str) -> None:
    while True:
        os.utime(path)
        time.sleep(0.05)


def test_another_hosts_lock_that_moves_is_respected(tmp_path: Path) -> None:
    pretend(tmp_path, job="SLURM_JOB_ID=17")
    mover = multiprocessing.get_context("fork").Process(target=_keep_moving, args=(str(tmp_path / LOCK),), daemon=True)
    mover.start()
    try:
        with pytest.raises(CompeteError, match=r"process 1 on elsewhere \(SLURM_JOB_ID=17\)"):
            lock(tmp_path, patience=30.0).take()
    finally:
        mover.kill()
        mover.join()


def test_an_earlier_attempt_of_the_same_job_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    pretend(tmp_path, job="SLURM_JOB_ID=17", attempt=None)
    started = time.monotonic()
    lock(tmp_path, patience=600.0).take()
    assert time.monotonic() - started < 300.0  # it did not wait for the lock to move


def test_a_lock_without_content_is_judged_by_its_time(tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    lock(tmp_path, patience=0.2).take()


def test_a_lock_that_changed_hands_is_not_discarded(tmp_path: Path) -> None:
    pretend(tmp_path, pid=2)
    lock(tmp_path)._discard({"pid": 1})
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == 2


def test_probe(tmp_path: Path) -> None:
    assert probe(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    assert "No such file" in str(probe(tmp_path / "nowhere"))


def test_probe_of_a_full_disk(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        assert "File too large" in str(probe(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
