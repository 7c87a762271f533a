"""A worker that is gone is not waited for."""

import inspect
import multiprocessing

import pytest
from megatron.core.dist_checkpointing.strategies.async_utils import PersistentAsyncCaller

from megatron_compete.resilience.saving import worker
from megatron_compete.resilience.saving.worker import watch_save_worker
from tests.ranks import run_rank


def wait_for_a_worker() -> None:
    """On a host without GPU it fails as soon as it is there: it counts devices."""
    watch_save_worker(0, 0)
    PersistentAsyncCaller._get_process(0, "spawn")
    PersistentAsyncCaller._persistent_preload_q.put(0)
    PersistentAsyncCaller._persistent_preload_q.join()  # as Megatron does, for ever


@pytest.mark.slow
def test_a_rank_ends_with_its_worker() -> None:
    with pytest.raises(AssertionError, match="the process that writes its checkpoints ended with exit code 1"):
        run_rank(wait_for_a_worker)


class Ending:
    """A process that has let go of its sentinel and has no exit code yet."""

    def __init__(self, codes: list[int | None]) -> None:
        self.codes = codes
        self.sentinel, writing = multiprocessing.Pipe(duplex=False)
        writing.close()

    @property
    def exitcode(self) -> int | None:
        return self.codes.pop(0) if len(self.codes) > 1 else self.codes[0]


def follow_one_that_is_ending() -> None:
    worker._follow(Ending([None, None, 3]), 0, 0)


def test_a_worker_that_is_still_ending_is_waited_for() -> None:
    with pytest.raises(AssertionError, match="the process that writes its checkpoints ended with exit code 3"):
        run_rank(follow_one_that_is_ending)


def start_and_leave() -> bool:
    watch_save_worker(0, 0)
    return bool(PersistentAsyncCaller._get_process(0, "spawn").is_alive())


@pytest.mark.slow
def test_a_worker_that_is_ended_with_the_process_is_no_failure() -> None:
    assert run_rank(start_and_leave)


def test_upstream_still_waits_without_a_look_at_the_process() -> None:
    source = inspect.getsource(PersistentAsyncCaller.schedule_async_call)
    assert "self._persistent_preload_q.join()" in source and "is_alive" not in source and "sentinel" not in source
