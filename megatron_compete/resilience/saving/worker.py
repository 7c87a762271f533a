"""Megatron's process that writes checkpoints beside the training (--use-persistent-ckpt-worker): its death is the rank's.

Megatron hands it tensors and waits in queues, which nobody fills once it is gone: the job would stand still until the
watchdog ends it. So a thread waits for the process, and ends the rank with it.
"""

import multiprocessing.connection
import multiprocessing.util
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from megatron.core.dist_checkpointing.strategies.async_utils import PersistentAsyncCaller

from megatron_compete.launch.run_files import record_failure
from megatron_compete.upstream import Replacement, wrap_symbol

FAILED = 1
POLL_SECONDS = 0.02
_leaving = threading.Event()
"""Set when this process ends: daemons are then terminated, which is no failure."""


def watch_save_worker(rank: int, local_rank: int) -> Replacement:
    """From here on this rank ends when its worker does."""

    def started(upstream: Callable[..., Any], cls: type[PersistentAsyncCaller], *args: Any, **named: Any) -> Any:
        known = cls._persistent_process
        process = upstream(cls, *args, **named)
        if process is not known:
            threading.Thread(target=_follow, args=(process, rank, local_rank), daemon=True).start()
        return process

    multiprocessing.util.Finalize(None, _leaving.set, exitpriority=1)  # before daemons are terminated
    return wrap_symbol(
        "megatron.core.dist_checkpointing.strategies.async_utils:PersistentAsyncCaller._get_process", started
    )


def _follow(process: Any, rank: int, local_rank: int) -> None:
    multiprocessing.connection.wait([process.sentinel])
    while (code := process.exitcode) is None:  # a process lets go of its sentinel before it has ended
        time.sleep(POLL_SECONDS)
    if code and not _leaving.is_set():
        failure = record_failure(
            f"the process that writes its checkpoints ended with exit code {code}", rank, local_rank, FAILED
        )
        print(f"megatron-compete: {failure.describe()}", file=sys.stderr, flush=True)
        os._exit(FAILED)
