"""The watchdog's inquiry, with the ranks of a job as objects of one process."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from megatron_compete.resilience.stuck_ranks import watchdog
from megatron_compete.resilience.stuck_ranks.watchdog import PREFIX, Watchdog

LIMIT = 0.6
PATIENCE = 60.0


class Job:
    """Watchdogs of a job, an iteration that the test sets, and who has left."""

    def __init__(self, world_size: int) -> None:
        self.iteration = 5
        self.left: dict[int, int] = {}
        store = TCPStore("127.0.0.1", 0, is_master=True)
        self.store = store
        self.ranks = [
            Watchdog(LIMIT, rank, world_size, store.clone(), self.leave_of(rank)) for rank in range(world_size)
        ]

    def leave_of(self, rank: int) -> Callable[[int], None]:
        def leave(code: int) -> None:
            self.left[rank] = code
            self.ranks[rank].stop()
            raise SystemExit  # ends the thread, as the process would

        return leave

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Job]:
    one = Job(2)
    monkeypatch.setattr(watchdog, "_iteration", lambda: one.iteration)
    monkeypatch.setattr(threading, "excepthook", lambda *args: None)
    monkeypatch.setenv("COMPETE_RUN", str(tmp_path))
    monkeypatch.setenv("COMPETE_ATTEMPT", "0")
    yield one
    for rank in one.ranks:
        rank.stop()


def begin(job: Job, *ranks: int) -> None:
    """Start watching, and let two steps pass."""
    for rank in ranks:
        job.ranks[rank].count_microbatch()
        assert not job.ranks[rank].is_overdue()
        job.ranks[rank].start()
    job.iteration += 1


def test_start_up_is_not_watched(job: Job) -> None:
    rank = job.ranks[0]
    rank.moved -= 1000
    assert not rank.is_overdue()
    rank.count_microbatch()
    rank.moved -= 1000
    assert not rank.is_overdue()  # within its first step
    job.iteration += 1
    assert rank.is_overdue()


def test_saving_has_more_patience(job: Job) -> None:
    rank = job.ranks[0]
    rank.count_microbatch()
    rank.is_overdue()
    job.iteration += 1
    rank.moved -= 2 * LIMIT
    assert rank.is_overdue()
    assert not save_checkpoint(rank)
    rank.moved -= 2 * LIMIT
    assert save_checkpoint(rank)


def save_checkpoint(rank: Watchdog) -> bool:
    """Named as Megatron's function, which is how a watchdog knows what its main thread is at."""
    return rank.is_overdue()


def test_who_gives_no_answer_is_named_and_recorded(job: Job, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    begin(job, 0)
    job.wait(lambda: 0 in job.left)
    assert job.left == {0: 1}
    assert "megatron-compete: rank 1 is stuck: it does not answer" in capfd.readouterr().err
    (record,) = (json.loads(path.read_text()) for path in (tmp_path / "failures").glob("*.json"))
    assert record["rank"] == 1 and "is stuck" in record["message"]


def test_all_leave_with_one_verdict(job: Job, capfd: pytest.CaptureFixture[str]) -> None:
    begin(job, 0, 1)
    job.wait(lambda: len(job.left) == 2)
    assert capfd.readouterr().err.count("is stuck: ") == 1


def test_a_step_that_goes_on_after_all(job: Job, capfd: pytest.CaptureFixture[str]) -> None:
    begin(job, 0)
    job.wait(lambda: job.store.check([f"{PREFIX}/alarm"]))
    job.ranks[0].moved += 1000  # it will not become overdue again
    job.ranks[0].microbatches += 1
    job.wait(lambda: not job.store.check([f"{PREFIX}/alarm"]))
    assert job.left == {} and "goes on after more than" in capfd.readouterr().err
