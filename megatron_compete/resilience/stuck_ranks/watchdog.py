"""A rank that is stuck ends the job, and is named, instead of leaving all others waiting for it.

Each rank notes when it began its last microbatch; that is all a step costs. Two threads live beside the main one, which
may be blocked in C (collectives release Python's lock there). One answers when the job asks how this rank is. The other
asks: when its own rank has begun nothing for `--stuck-timeout` seconds, it raises an alarm in the job's key-value store,
collects the answers, and the first rank to raise it judges (`verdict.py`), records the failure and lets all ranks leave.

Not watched, or with more patience: start-up, up to the end of the first step (building indices or compiling may take
long; torch's own --distributed-timeout-minutes holds there); saving and loading checkpoints get `SAVING_ALLOWANCE`
times the limit. Evaluation begins microbatches as training does.
"""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from megatron.training import get_args
from torch.distributed import distributed_c10d

from megatron_compete.launch.run_files import host_name, record_failure
from megatron_compete.resilience.stuck_ranks.verdict import Report, Verdict, judge, phase_of, stack_of

SAVING_ALLOWANCE = 3.0
STUCK_EXIT_CODE = 1
SHOWN_FRAMES = 12
PREFIX = "megatron-compete/stuck"
FIRST_STEPS = 1
"""Iterations of this process that have to be over before anything is watched."""


class Watchdog:
    """Watches this rank and takes part in the job's inquiry.

    Args:
        limit: seconds without progress after which something is wrong.
        store: a connection of its own to the job's store: the main thread may hold its own in a call that waits.
        leave: ends the process; another function in tests.
    """

    def __init__(
        self, limit: float, rank: int, world_size: int, store: Any, leave: Callable[[int], None] = os._exit
    ) -> None:
        self.limit, self.rank, self.world_size, self.leave = limit, rank, world_size, leave
        self.asking, self.answering = store, store.clone()
        self.interval = min(15.0, max(0.2, limit / 10))
        self.grace = max(4 * self.interval, 2.0)
        """Seconds for the other ranks to answer: each looks for a question every interval."""
        self.microbatches = 0
        self.moved = time.monotonic()
        self.first_iteration: int | None = None
        self._stop = threading.Event()
        self._main = threading.main_thread().ident

    def start(self) -> None:
        """Make this rank known and begin to watch."""
        self.asking.set(f"{PREFIX}/host/{self.rank}", host_name())
        for task in (self._watch, self._answer):
            threading.Thread(target=task, name=f"watchdog{task.__name__}", daemon=True).start()

    def stop(self) -> None:
        """Watch no longer: training is over."""
        self._stop.set()

    def count_microbatch(self) -> None:
        """The rank has begun a microbatch."""
        self.microbatches += 1
        self.moved = time.monotonic()

    def report(self) -> Report:
        """How this rank is, by its own account."""
        stack = stack_of(sys._current_frames().get(self._main or 0))
        return Report(
            self.rank,
            host_name(),
            _iteration() + 1,
            self.microbatches,
            time.monotonic() - self.moved,
            phase_of(stack),
            stack,
        )

    def is_overdue(self) -> bool:
        """Whether this rank has begun nothing for too long."""
        if not self._has_started():
            return False
        silent = time.monotonic() - self.moved
        if silent <= self.limit:
            return False
        return silent > self.limit * (SAVING_ALLOWANCE if self.report().phase == "saving" else 1.0)

    def _has_started(self) -> bool:
        if self.microbatches == 0:
            return False
        if self.first_iteration is None:
            self.first_iteration = _iteration()
        return _iteration() >= self.first_iteration + FIRST_STEPS

    def _watch(self) -> None:
        while not self._stop.wait(self.interval):
            if self.is_overdue():
                inquiry = threading.Thread(target=self._inquire, args=(self.microbatches,), daemon=True)
                inquiry.start()
                inquiry.join(4 * self.grace)
                if inquiry.is_alive() and self.is_overdue():
                    self._end_without_store()

    def _answer(self) -> None:
        """Answer each alarm once, also where this rank itself is well."""
        answered = ""
        while not self._stop.wait(self.interval):
            try:
                if not self.answering.check([f"{PREFIX}/alarm"]):
                    continue
                alarm = self.answering.get(f"{PREFIX}/alarm").decode()
                if alarm != answered:
                    answered = alarm
                    self.answering.set(f"{PREFIX}/{alarm}/{self.rank}", json.dumps(self.report().to_json()))
            except RuntimeError:
                return  # the store is gone, and with it the job

    def _inquire(self, count: int) -> None:
        """Raise or join an alarm, and end it with a verdict, unless the step goes on after all."""
        try:
            alarm = self.asking.compare_set(f"{PREFIX}/alarm", "", f"{self.rank}-{count}").decode()
            if alarm != f"{self.rank}-{count}":
                self._follow(alarm, count)
                return
            self._wait(self.grace, count)
            if self.microbatches != count:
                self._withdraw()
                return
            verdict, reports = self._collect(alarm)
            self._record(verdict)
            _print(verdict, reports)
            self.asking.set(f"{PREFIX}/{alarm}/verdict", verdict.describe())
            time.sleep(1.25 * self.interval)  # for the others to read it: this rank may be the one with the store
        except RuntimeError:
            if self.microbatches != count:
                return
            self._end_without_store()
        self.leave(STUCK_EXIT_CODE)

    def _follow(self, alarm: str, count: int) -> None:
        """Wait for the judge's verdict; it may be withdrawn."""
        deadline = time.monotonic() + 3 * self.grace
        while time.monotonic() < deadline and self.microbatches == count:
            if self.asking.check([f"{PREFIX}/{alarm}/verdict"]):
                time.sleep(self.interval)  # all at once: who leaves early shows up as a broken connection elsewhere
                self.leave(STUCK_EXIT_CODE)
            time.sleep(self.interval / 4)
        if self.microbatches == count:
            self.asking.delete_key(f"{PREFIX}/alarm")  # its judge has gone silent, too; the next alarm finds it out

    def _wait(self, seconds: float, count: int) -> None:
        """Wait, but not for long once all ranks have answered or this rank goes on."""
        deadline = time.monotonic() + seconds
        keys = [f"{PREFIX}/{self.rank}-{count}/{rank}" for rank in range(self.world_size)]
        while time.monotonic() < deadline and self.microbatches == count and not self.asking.check(keys):
            time.sleep(self.interval / 4)

    def _withdraw(self) -> None:
        print(
            f"megatron-compete: rank {self.rank} goes on after more than {self.limit:g} s", file=sys.stderr, flush=True
        )
        self.asking.delete_key(f"{PREFIX}/alarm")

    def _collect(self, alarm: str) -> tuple[Verdict, list[Report]]:
        reports, hosts = [], {}
        for rank in range(self.world_size):
            if self.asking.check([f"{PREFIX}/host/{rank}"]):
                hosts[rank] = self.asking.get(f"{PREFIX}/host/{rank}").decode()
            key = f"{PREFIX}/{alarm}/{rank}"
            if self.asking.check([key]):
                reports.append(Report.from_json(json.loads(self.asking.get(key))))
        return judge(reports, self.world_size, hosts), reports

    def _record(self, verdict: Verdict) -> None:
        """Leave the failure record of the rank that is blamed, or of this one where none is."""
        rank = self.rank if verdict.rank is None else verdict.rank
        local_rank = rank % int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        record_failure(verdict.describe(), rank, local_rank, STUCK_EXIT_CODE, host=verdict.host)

    def _end_without_store(self) -> NoReturn:
        """The job's store does not answer: the process that holds it is stopped or gone."""
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            verdict = Verdict(None, None, f"torchrun's agent at {address} does not answer")
        else:
            verdict = Verdict(0, None, f"the job's store at {address}, which it holds, does not answer (its process is stopped, or its host is gone)")  # fmt: skip
        self._record(verdict)
        _print(verdict, [])
        self.leave(STUCK_EXIT_CODE)
        raise SystemExit(STUCK_EXIT_CODE)


def _print(verdict: Verdict, reports: list[Report]) -> None:
    """The stack of the rank that is blamed, or one of each place, and then one line."""
    shown = {report.where: report for report in reports if verdict.rank in (None, report.rank)}
    for report in list(shown.values())[:3]:
        print(f"megatron-compete: rank {report.rank}'s main thread:\n{_formatted(report)}", file=sys.stderr)
    print(f"megatron-compete: {verdict.describe()}", file=sys.stderr, flush=True)


def _formatted(report: Report) -> str:
    frames = [traceback.FrameSummary(*frame) for frame in report.stack[-SHOWN_FRAMES:]]
    return "".join(traceback.format_list(frames)).rstrip()


def _iteration() -> int:
    return int(getattr(get_args(), "curr_iteration", 0))


_watchdog: Watchdog | None = None


def start_watchdog(limit: float) -> None:
    """Watch this rank until `stop_watchdog`; `limit` seconds, 0 for never. torch.distributed is initialised."""
    global _watchdog
    if limit <= 0 or _watchdog is not None or torch.distributed.get_world_size() == 0:
        return
    store: Any = distributed_c10d._get_default_store()
    _watchdog = Watchdog(limit, torch.distributed.get_rank(), torch.distributed.get_world_size(), store.clone())
    _watchdog.start()


def stop_watchdog() -> None:
    """End what `start_watchdog` began."""
    global _watchdog
    if _watchdog is not None:
        _watchdog.stop()
    _watchdog = None


def count_microbatch() -> None:
    """Called at each microbatch, in training and in evaluation."""
    if _watchdog is not None:
        _watchdog.count_microbatch()
