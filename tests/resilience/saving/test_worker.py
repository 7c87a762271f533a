"""A worker that is gone is not waited for."""

import inspect

import pytest
from megatron.core.dist_checkpointing.strategies.async_utils import PersistentAsyncCaller

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
        run_rank(wait_for_a_worker, timeout=600.0)


def start_and_leave() -> bool:
    watch_save_worker(0, 0)
    return bool(PersistentAsyncCaller._get_process(0, "spawn").is_alive())


@pytest.mark.slow
def test_a_worker_that_is_ended_with_the_process_is_no_failure() -> None:
    assert run_rank(start_and_leave)


def test_upstream_still_waits_without_a_look_at_the_process() -> None:
    source = inspect.getsource(PersistentAsyncCaller.schedule_async_call)
    assert "self._persistent_preload_q.join()" in source and "is_alive" not in source and "sentinel" not in source
