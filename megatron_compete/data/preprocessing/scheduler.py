"""Which shard a worker gets next, and what is finished."""

import zlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.engines import EngineChoice
from megatron_compete.data.inputs.shards import Plan, Shard, ShardKey, SourceRange
from megatron_compete.data.preprocessing.parts import ShardRecord


@dataclass(frozen=True)
class Task:
    """A shard, and the engine to do it with."""

    shard: Shard
    engine: EngineChoice


@dataclass
class _Stream:
    """A compressed source; how many shards it has is known once its end was met."""

    source: int
    next: int = 0
    last: int | None = None


class ShardScheduler:
    """Assigns shards to whoever asks, and takes back what became of them.

    Known shards go out in order. Of compressed files a worker keeps the one it is reading, so that it need not begin at
    the file's beginning again; workers share one only when there are fewer files than workers.

    Args:
        plan: all work.
        finished: shards that an earlier run finished with `engine`.
        pipe: blocks of the pipe, if the plan has one.
    """

    def __init__(
        self, plan: Plan, finished: Iterable[ShardRecord], engine: EngineChoice, pipe: Iterator[bytes] | None = None
    ) -> None:
        self.plan = plan
        self.engine = engine
        self.finished: dict[ShardKey, ShardRecord] = {}
        self._pipe = pipe
        self._pipe_number = self._pipe_lines = 0
        self._pipe_ended = False
        self._streams = {source: _Stream(source) for source in plan.streams}
        self._unopened = deque(self._streams.values())
        self._reading: dict[str, _Stream] = {}
        self._in_hand: dict[ShardKey, Shard] = {}
        for record in finished:
            self._take(record)
        self._known = deque(shard for shard in plan.shards if shard.key not in self.finished)

    @property
    def is_idle(self) -> bool:
        """Whether nobody has a shard in hand."""
        return not self._in_hand

    @property
    def is_complete(self) -> bool:
        """Whether all shards are finished."""
        is_read = self._pipe is None or self._pipe_ended
        return self.is_idle and not self._known and is_read and all(map(self._is_assigned, self._streams.values()))

    def next(self, worker: str) -> Task | None:
        """A shard for `worker`; None if there is nothing to do now (but there may be when others have finished).

        Raises:
            CompeteError: the pipe does not bring what the earlier run read.
        """
        shard = self._known.popleft() if self._known else self._from_stream(worker) or self._from_pipe()
        if shard is None:
            return None
        self._in_hand[shard.key] = shard
        return Task(shard, self.engine)

    def done(self, record: ShardRecord) -> bool:
        """Take back a finished shard; False if it was done with an engine that has been dismissed since."""
        shard = self._in_hand.pop(record.key)
        if record.engine != self.engine.name:
            self._known.append(shard)
            return False
        self._take(record)
        return True

    def dismiss(self, key: ShardKey, engine: EngineChoice) -> None:
        """Go on with `engine`; the shard `key` comes back undone, and all that the other engine did is done again."""
        self._known.append(self._in_hand.pop(key))
        if engine.name == self.engine.name:
            return
        self.engine, self.finished = engine, {}
        waiting = {shard.key for shard in self._known} | set(self._in_hand)
        self._known.extend(shard for shard in self.plan.shards if shard.key not in waiting)
        for stream in self._streams.values():
            stream.next, stream.last = 0, None
        self._unopened = deque(self._streams.values())

    def _take(self, record: ShardRecord) -> None:
        self.finished[record.key] = record
        stream = self._streams.get(record.key[0])
        if stream is not None and record.at_end:
            stream.last = record.key[1] if stream.last is None else min(stream.last, record.key[1])

    def _from_stream(self, worker: str) -> Shard | None:
        stream = self._stream_for(worker)
        if stream is None:
            self._reading.pop(worker, None)
            return None
        self._reading[worker] = stream
        shard = self.plan.stream_shard(stream.source, stream.next)
        stream.next += 1
        return shard

    def _stream_for(self, worker: str) -> _Stream | None:
        """The stream that `worker` reads already, one that nobody reads, or else the one that fewest read."""
        stream = self._reading.get(worker)
        if stream is not None and not self._is_assigned(stream):
            return stream
        while self._unopened:
            stream = self._unopened.popleft()
            if not self._is_assigned(stream):
                return stream
        readers = Counter(stream.source for stream in self._reading.values() if not self._is_assigned(stream))
        return self._streams[min(readers, key=lambda source: readers[source])] if readers else None

    def _is_assigned(self, stream: _Stream) -> bool:
        """Whether all shards of the stream are finished or in hand, or may be: its end is known to be before."""
        while (stream.source, stream.next) in self.finished or (stream.source, stream.next) in self._in_hand:
            stream.next += 1
        return stream.last is not None and stream.next > stream.last

    def _from_pipe(self) -> Shard | None:
        """The next block of the pipe that is not finished."""
        source = self.plan.pipe
        if source is None or self._pipe is None or self._pipe_ended:
            return None
        for given in self._pipe:
            key = (source, self._pipe_number)
            range_ = SourceRange(source, 0, None)
            shard = Shard(key, (range_,), {source: self.plan.sources[source]}, given, self._pipe_lines)
            self._pipe_number += 1
            self._pipe_lines += given.count(b"\n")
            before = self.finished.get(key)
            if before is None:
                return shard
            if before.given_crc32 != zlib.crc32(given):
                raise _other_pipe(f"block {self._pipe_number} differs")
        self._pipe_ended = True
        if any(key[0] == source and key[1] >= self._pipe_number for key in self.finished):
            raise _other_pipe("it is shorter")
        return None


def _other_pipe(difference: str) -> CompeteError:
    return CompeteError(
        f"the pipe does not bring what the unfinished run read ({difference}): give the same again, or --restart to "
        "begin again"
    )
