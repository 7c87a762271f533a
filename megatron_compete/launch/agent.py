"""torchrun's agent on a node, as a job with a batch system around it needs it.

Upstream's agent ends its ranks on SIGTERM and kills them 30 s later, in the midst of a checkpoint; takes a rank that
was told to stop for a failed one; and reports failures in a table on each node. This one

* hands SIGTERM on to its ranks, once, and waits for them to save and leave;
* lets ranks leave with exit code 75 together with the other nodes', as finished ones do;
* records ranks that failed in the run folder, at the time they were last seen alive, so that among all nodes' records
  the cause comes before what followed from it; and then ends its other ranks without long delay.

The ranks are `torch.distributed.elastic`'s subprocesses, each with a process group of its own.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

from megatron_compete.common.errors import USAGE_EXIT_CODE
from megatron_compete.launch.run_files import record_failure
from megatron_compete.launch.stop_signal import STOPPED_EXIT_CODE, stop_signal_is_handled

END_SECONDS = 5.0
"""What the other ranks of a node have after SIGTERM when one has failed; then they are killed."""
STOP_SECONDS = 120.0
"""What ranks have to leave after the first one left with 75: more than a save that is still going on elsewhere."""


class JobAgent(LocalElasticAgent):
    """See the module. One instance runs in a process."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._told_to_stop = False
        self._seen_alive = time.time()
        self._first_left: float | None = None
        self._left: dict[int, int] = {}
        JobAgent.current = self

    current: "JobAgent | None" = None
    """The latest agent: torchrun makes it, and who started torchrun asks it for the exit code."""

    def exit_code(self) -> int | None:
        """What the ranks' own exit codes mean for the job, or None while they have not left on their own."""
        codes = set(self._left.values())
        if not codes:
            return None
        if codes <= {0, STOPPED_EXIT_CODE}:
            return max(codes)
        return USAGE_EXIT_CODE if USAGE_EXIT_CODE in codes else 1

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        pids = super()._start_workers(worker_group)
        signal.signal(signal.SIGTERM, self._hand_on)  # upstream's start has taken it
        stop_signal_is_handled()
        self._seen_alive, self._first_left, self._left = time.time(), None, {}
        return pids

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        """Once: a batch system repeats its signals, and may have sent this one to the ranks as well."""
        if self._told_to_stop:
            return
        self._told_to_stop = True
        for process in self._processes().values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        processes = self._processes()
        codes = {local_rank: self._meaning(process.poll()) for local_rank, process in processes.items()}
        left = {local_rank: code for local_rank, code in codes.items() if code is not None}
        failed = {local_rank: code for local_rank, code in left.items() if code not in (0, STOPPED_EXIT_CODE)}
        if failed:
            self._left = failed
            self._report(failed, worker_group)
            self._end_others()
            return super()._monitor_workers(worker_group)
        if STOPPED_EXIT_CODE not in left.values():
            self._seen_alive = time.time()
            if len(left) == len(codes):
                self._left = left
            return super()._monitor_workers(worker_group)
        return self._stopping(left, worker_group)

    def _stopping(self, left: dict[int, int], worker_group: WorkerGroup) -> RunResult:
        """Wait for the rest once a rank has left with 75; to torchrun that is success."""
        self._seen_alive = time.time()
        self._first_left = self._first_left or time.time()
        if len(left) < len(worker_group.workers):
            if time.time() < self._first_left + STOP_SECONDS:
                return RunResult(state=WorkerState.HEALTHY)
            self._end_others()  # they wait for ranks that are gone
        self._left = left
        return RunResult(
            state=WorkerState.SUCCEEDED, return_values={worker.global_rank: None for worker in worker_group.workers}
        )

    def _meaning(self, code: int | None) -> int | None:
        """The exit code; a rank that SIGTERM ended had not begun to listen to it."""
        return STOPPED_EXIT_CODE if self._told_to_stop and code == -signal.SIGTERM else code

    def _report(self, failed: dict[int, int], worker_group: WorkerGroup) -> None:
        for local_rank, code in failed.items():
            if code == USAGE_EXIT_CODE:
                continue  # the rank has said what is wrong
            rank = worker_group.workers[local_rank].global_rank
            message = self._message(local_rank)
            failure = record_failure(message, rank, local_rank, code, at=self._seen_alive)
            if not message:  # else the rank has said so itself
                print(f"megatron-compete: {failure.describe()}", file=sys.stderr, flush=True)

    def _message(self, local_rank: int) -> str:
        """What the rank left in torchrun's error file, or nothing."""
        try:
            return str(json.loads(Path(self._pcontext.error_files[local_rank]).read_text())["message"]["message"])  # type: ignore[union-attr]
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def _end_others(self) -> None:
        """A rank without its peers can neither train nor save."""
        alive = [process for process in self._processes().values() if process.poll() is None]
        for number, seconds in ((signal.SIGTERM, END_SECONDS), (signal.SIGKILL, END_SECONDS)):
            for process in alive:
                if process.poll() is None:
                    os.killpg(process.pid, number)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline and any(process.poll() is None for process in alive):
                time.sleep(0.05)

    def _processes(self) -> dict[int, Any]:
        """The ranks' `subprocess.Popen` by local rank."""
        handlers = getattr(self._pcontext, "subprocess_handlers", {})
        return {local_rank: handler.proc for local_rank, handler in handlers.items()}
