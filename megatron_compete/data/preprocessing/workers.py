"""Workers of this node: this process itself, or processes forked from it that die with it."""

import contextlib
import ctypes
import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.engines import EngineChoice, EngineDiffers, make_encoder
from megatron_compete.data.inputs.shards import ShardKey
from megatron_compete.data.preprocessing.coordinator import Coordinator
from megatron_compete.data.preprocessing.job import Preprocessing
from megatron_compete.data.preprocessing.parts import PartWriter, ShardRecord
from megatron_compete.data.preprocessing.scheduler import Task
from megatron_compete.data.preprocessing.shard import ShardWorker, make_document_encoder

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class WorkerSettings:
    """What every worker of this node knows before it gets a shard."""

    job: Preprocessing
    tokenizer: Any
    eod: int | None
    vocab_size: int
    """Ids the tokenizer can give."""


@dataclass(frozen=True)
class _Outcome:
    """What a worker process sends back: one of the three."""

    record: ShardRecord | None = None
    differs: tuple[ShardKey, EngineChoice, str] | None = None
    fault: str | None = None


class _TaskRunner:
    """Does tasks one after the other, with an encoder and part files made for the first one."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._worker: ShardWorker | None = None

    def do(self, task: Task) -> ShardRecord:
        if self._worker is None:
            part = os.path.join(self._settings.job.work_folder, "parts", secrets.token_hex(6))
            encoder, parts = self._encoder(task.engine), PartWriter(part, self._settings.job.json_keys)
            self._worker = ShardWorker(encoder, parts, task.engine, self._settings.job.on_error)
        elif self._worker.engine != task.engine:
            self._worker.use(self._encoder(task.engine), task.engine)
        return self._worker.run(task.shard)

    def _encoder(self, engine: EngineChoice) -> Any:
        job, tokenizer = self._settings.job, self._settings.tokenizer
        return make_document_encoder(
            make_encoder(job.tokenizer, tokenizer, engine),
            job.json_keys,
            self._settings.vocab_size,
            self._settings.eod,
            job.empty_documents == "reject",
        )

    def outcome(self, task: Task) -> _Outcome:
        """Do a task; what the user can fix comes back in words."""
        try:
            return _Outcome(record=self.do(task))
        except EngineDiffers as difference:
            return _Outcome(differs=(task.shard.key, task.engine, str(difference)))
        except CompeteError as error:
            return _Outcome(fault=str(error))
        except OSError as error:
            return _Outcome(fault=in_words(error, self._settings.job.work_folder))

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()


def in_words(error: OSError, where: str) -> str:
    """A fault of the system as one line with a way out."""
    what = f"{error.filename or where}: {error.strerror or error}"
    return f"{what}: fix that, and the same command goes on from the shards that are finished"


def run_here(coordinator: Coordinator, settings: WorkerSettings) -> None:
    """Do the whole job in this process.

    Raises:
        CompeteError: a bad document, or a fault of the system.
    """
    runner = _TaskRunner(settings)
    with contextlib.closing(runner):
        while isinstance(task := coordinator.next("0"), Task):
            _deliver(coordinator, runner.outcome(task))
            coordinator.attend()


def _deliver(coordinator: Coordinator, outcome: _Outcome) -> None:
    if outcome.record is not None:
        coordinator.done(outcome.record)
    elif outcome.differs is not None:
        coordinator.differs(*outcome.differs)
    else:
        raise CompeteError(str(outcome.fault))


class WorkerPool:
    """Worker processes, forked when this object is made.

    They share what this process has imported and built. If it dies, however it does, the system kills them.

    Args:
        count: how many.
        settings: what they know.
    """

    def __init__(self, count: int, settings: WorkerSettings) -> None:
        context = get_context("fork")
        self._connections: list[Connection] = []
        self._processes: list[BaseProcess] = []
        sys.stdout.flush()
        for number in range(count):
            ours, theirs = context.Pipe()
            arguments = (theirs, [*self._connections, ours], settings, os.getpid())
            process = context.Process(target=_work, args=arguments, name=f"worker-{number}", daemon=True)
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [process.pid for process in self._processes if process.pid is not None]

    def run(self, coordinator: Coordinator, name: str = "") -> None:
        """Keep the workers busy until the coordinator has told each of them to stop.

        Args:
            name: goes before a worker's number, so that workers of several nodes have different names.
        Raises:
            CompeteError: a bad document, a fault of the system, or a worker that died.
        """
        names = {connection: f"{name}{number}" for number, connection in enumerate(self._connections)}
        waiting, busy = list(self._connections), set[Connection]()
        while waiting or busy:
            waiting = self._hand_out(coordinator, waiting, busy, names)
            for ready in wait(list(busy), coordinator.poll_seconds):
                assert isinstance(ready, Connection)
                busy.remove(ready)
                waiting.append(ready)
                _deliver(coordinator, self._receive(ready))
            coordinator.attend()

    def _hand_out(
        self,
        coordinator: Coordinator,
        waiting: Sequence[Connection],
        busy: set[Connection],
        names: dict[Connection, str],
    ) -> list[Connection]:
        """Ask the coordinator for everyone who waits; who must go on waiting."""
        still = []
        for connection in waiting:
            answer = coordinator.next(names[connection])
            if answer == "wait":
                still.append(connection)
            elif isinstance(answer, Task):
                self._send(connection, answer)
                busy.add(connection)
        return still

    def _send(self, connection: Connection, task: Task) -> None:
        try:
            connection.send(task)
        except OSError:
            raise self._death(connection) from None

    def _receive(self, connection: Connection) -> _Outcome:
        try:
            outcome = connection.recv()
        except (EOFError, OSError):
            raise self._death(connection) from None
        assert isinstance(outcome, _Outcome)
        return outcome

    def _death(self, connection: Connection) -> CompeteError:
        process = self._processes[self._connections.index(connection)]
        process.join(timeout=5.0)
        code = process.exitcode
        if code is not None and code < 0:
            cause = f"was killed by {signal.Signals(-code).name}" + (
                ", most likely for lack of memory: try fewer --workers" if code == -signal.SIGKILL else ""
            )
        else:
            cause = f"ended with code {code}, for the reason above"
        return CompeteError(
            f"{process.name} of {len(self._processes)} {cause}; the same command goes on from the shards that are "
            "finished"
        )

    def close(self) -> None:
        """End the workers; a shard in hand is lost."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.kill()
            process.join()


def become_worker(parent: int) -> None:
    """What a forked process does first: it leaves signals to its parent, and does not outlive it."""
    for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signal_number, signal.SIG_IGN)  # the parent says when to stop
    _die_with(parent)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _work(connection: Connection, others: Sequence[Connection], settings: WorkerSettings, parent: int) -> None:
    """A worker process."""
    become_worker(parent)
    for other in others:  # so that the parent's death closes the pipe
        other.close()
    runner = _TaskRunner(settings)
    with contextlib.closing(runner), contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        for task in _tasks(connection):
            connection.send(runner.outcome(task))


def _tasks(connection: Connection) -> Iterator[Task]:
    while True:
        yield connection.recv()


def _die_with(parent: int) -> None:
    """Have the system kill this process when `parent` has died; where it cannot, the closed pipe ends it later."""
    with contextlib.suppress(OSError, AttributeError):
        prctl: Callable[..., int] = ctypes.CDLL(None, use_errno=True).prctl
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
