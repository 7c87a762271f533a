"""Where workers get shards and bring back what became of them; the coordinator of a job without MPI, or of rank 0."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

from megatron_compete.common.progress import Progress
from megatron_compete.data.engines import EngineChoice
from megatron_compete.data.inputs.shards import ShardKey
from megatron_compete.data.preprocessing.folder import WorkFolder
from megatron_compete.data.preprocessing.identity import Identity
from megatron_compete.data.preprocessing.parts import ShardRecord
from megatron_compete.data.preprocessing.scheduler import ShardScheduler, Task

Answer = Task | Literal["wait", "stop"]
"""What a worker is told to do: a task, to ask again later, or to end."""


class Coordinator(Protocol):
    """What workers see of the job."""

    poll_seconds: float
    """Longest time between two calls of `attend`, and of `next` for a worker that waits."""

    def next(self, worker: str) -> Answer:
        """What `worker` is to do now."""

    def done(self, record: ShardRecord) -> None:
        """A shard is finished."""

    def differs(self, key: ShardKey, engine: EngineChoice, difference: str) -> None:
        """A shard is not finished, because `engine` was caught giving other ids than the reference."""

    def attend(self) -> None:
        """Do what else there is to do; called every `poll_seconds` at least."""


class StopRequest:
    """Whether SIGTERM or SIGUSR1 has come: the job then ends when the shards in hand are finished."""

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Take these signals as a request to stop for the time being."""
        signals = (signal.SIGTERM, signal.SIGUSR1)
        before = {number: signal.signal(number, self._request) for number in signals}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _request(self, *_: object) -> None:
        self.requested = True


class LocalCoordinator:
    """The coordinator that has the scheduler.

    Args:
        scheduler: what there is to do.
        folder: where a change of engine is written down.
        progress: where finished shards are shown.
        stop: whether to end early.
    """

    poll_seconds = 0.1

    def __init__(
        self, scheduler: ShardScheduler, folder: WorkFolder, identity: Identity, progress: Progress, stop: StopRequest
    ) -> None:
        self.scheduler = scheduler
        self.failed = False
        """Set when something went wrong: nothing more is assigned."""
        self._folder = folder
        self._identity = identity
        self._progress = progress
        self._stop = stop

    def next(self, worker: str) -> Answer:
        """A task, unless the job stops."""
        if self.failed or self._stop.requested:
            return "stop"
        task = self.scheduler.next(worker)
        if task is not None:
            return task
        return "stop" if self.scheduler.is_idle else "wait"

    def done(self, record: ShardRecord) -> None:
        """Count it."""
        if self.scheduler.done(record):
            tokens = sum(dataset.tokens for dataset in record.datasets)
            self._progress.advance(record.documents, record.disk_bytes, record.text_bytes, tokens)

    def differs(self, key: ShardKey, engine: EngineChoice, difference: str) -> None:
        """Say so, and go on with the reference for the whole job."""
        if engine.name == self.scheduler.engine.name:
            print(f"{difference}: all shards are done with the reference now", file=sys.stderr, flush=True)
            engine = engine.dismissed(difference)
            self._folder.note(self._identity, engine.record())
        else:
            engine = self.scheduler.engine
        self.scheduler.dismiss(key, engine)

    def attend(self) -> None:
        """Show the progress."""
        self._progress.show()
