"""Three answers of the queue: a job is there, is over, or nobody knows."""

import os
from pathlib import Path

import pytest

from megatron_compete.cluster.queue import ask_queue

LINE = "41|PENDING|Resources|0:00|1:00:00|1:00:00|N/A|"


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in whose script the test writes."""
    stand_in = tmp_path / "squeue"
    stand_in.write_text("#!/bin/sh\nexit 0\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return stand_in


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo slurm_load_jobs error: Unable to contact slurm controller >&2; exit 1", "Unable to contact"),
        ("exit 3", "squeue: exit code 3"),
        (f"echo '{LINE}'; echo 'squeue: upgrade tonight'", "squeue says 'squeue: upgrade tonight'"),
        (f"echo '{LINE}|more'", "squeue says '41|PENDING"),
    ],
)
def test_what_is_not_known(squeue: Path, script: str, why: str) -> None:
    squeue.write_text(f"#!/bin/sh\n{script}\n")
    queue = ask_queue(["41", "42"])
    assert not queue.known and why in queue.why


def test_no_squeue_and_no_answer(squeue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_compete.cluster.queue.TIMEOUT_SECONDS", 0.05)
    squeue.write_text("#!/bin/sh\nexec sleep 60\n")
    assert not ask_queue(["41"]).known and "does not answer" in ask_queue(["41"]).why
    squeue.unlink()
    monkeypatch.setenv("PATH", str(squeue.parent))
    assert not ask_queue(["41"]).known and "No such file" in ask_queue(["41"]).why
    assert ask_queue([]).known


def test_what_is_over_and_what_is_there(squeue: Path) -> None:
    squeue.write_text("#!/bin/sh\necho slurm_load_jobs error: Invalid job id specified >&2; exit 1\n")
    assert ask_queue(["41"]).known and not ask_queue(["41"]).jobs
    squeue.write_text(f"#!/bin/sh\necho '{LINE}'\n")
    assert ask_queue(["41", "42"]).known and set(ask_queue(["41", "42"]).jobs) == {"41"}


def test_the_users_own_filters_hide_nothing(squeue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    squeue.write_text(f"#!/bin/sh\n[ -n \"$SQUEUE_STATES\" ] || echo '{LINE}'\n")
    assert set(ask_queue(["41"]).jobs) == {"41"}
