"""Who gets which shard."""

from zlib import crc32

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.engines import EngineChoice
from megatron_compete.data.inputs.shards import Plan, Shard, ShardKey, SourceRange
from megatron_compete.data.inputs.sources import Source
from megatron_compete.data.preprocessing.parts import Extent, ShardRecord
from megatron_compete.data.preprocessing.scheduler import ShardScheduler, Task

FAST, REFERENCE = EngineChoice("gigatoken", "auto"), EngineChoice("reference", "auto")
NOTHING = Extent(0, 0, 0)


def plan(known: int = 0, streams: int = 0) -> Plan:
    """A plain source of so many shards, then so many streams."""
    sources = [Source(f"{number}.jsonl", "jsonl", None, 10) for number in range(streams + 1)]
    made = Plan(sources, 10, streams=list(range(1, streams + 1)))
    made.shards = [
        Shard((0, number), (SourceRange(0, number, number + 1),), {0: sources[0]}) for number in range(known)
    ]
    return made


def record(key: ShardKey, engine: EngineChoice = FAST, at_end: bool = False, crc: int | None = None) -> ShardRecord:
    return ShardRecord(key, [], engine.name, 1, 0, [], NOTHING, {}, at_end, 0, 0, 0, 0, crc)


def key_of(task: Task | None) -> ShardKey | None:
    return None if task is None else task.shard.key


def test_known_shards_in_order_without_those_that_are_finished() -> None:
    scheduler = ShardScheduler(plan(known=4), [record((0, 1))], FAST)
    assert [key_of(scheduler.next("a")) for _ in range(4)] == [(0, 0), (0, 2), (0, 3), None]
    assert not scheduler.is_complete
    assert all(scheduler.done(record((0, number))) for number in (3, 0, 2))
    assert scheduler.is_complete and sorted(scheduler.finished) == [(0, number) for number in range(4)]


def test_a_worker_stays_with_its_stream_and_helps_when_none_is_left() -> None:
    scheduler = ShardScheduler(plan(streams=2), [], FAST)
    assert key_of(scheduler.next("a")) == (1, 0)
    assert key_of(scheduler.next("b")) == (2, 0)
    scheduler.done(record((1, 0)))
    assert key_of(scheduler.next("a")) == (1, 1)
    scheduler.done(record((2, 0), at_end=True))
    assert key_of(scheduler.next("b")) == (1, 2)  # its own has ended
    scheduler.done(record((1, 2), at_end=True))
    assert key_of(scheduler.next("b")) is None and not scheduler.is_complete
    scheduler.done(record((1, 1), at_end=True))
    assert key_of(scheduler.next("a")) is None and scheduler.is_complete


def test_a_stream_goes_on_where_an_earlier_run_left_it() -> None:
    finished = [record((1, 0)), record((1, 2)), record((1, 4), at_end=True)]
    scheduler = ShardScheduler(plan(streams=1), finished, FAST)
    assert [key_of(scheduler.next("a")) for _ in range(3)] == [(1, 1), (1, 3), None]


def test_a_dismissed_engine_has_all_its_shards_done_again() -> None:
    scheduler = ShardScheduler(plan(known=3, streams=1), [], FAST)
    tasks = [scheduler.next(worker) for worker in "abcd"]
    assert [key_of(task) for task in tasks] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    scheduler.done(record((0, 0)))
    scheduler.dismiss((0, 1), REFERENCE)
    assert scheduler.finished == {}
    assert not scheduler.done(record((0, 2)))  # still the other engine's
    assert not scheduler.done(record((1, 0), at_end=True))
    done = []
    while (task := scheduler.next("a")) is not None:
        assert task.engine == REFERENCE
        done.append(task.shard.key)
        assert scheduler.done(record(task.shard.key, REFERENCE, at_end=task.shard.key == (1, 0)))
    assert sorted(done) == [(0, 0), (0, 1), (0, 2), (1, 0)] and scheduler.is_complete


def test_standard_input_must_be_the_same() -> None:
    def scheduler(finished: list[ShardRecord], *blocks: bytes) -> ShardScheduler:
        return ShardScheduler(
            Plan([Source("-", "jsonl", None, 0, is_pipe=True)], 10, pipe=0), finished, REFERENCE, iter(blocks)
        )

    first = record((0, 0), REFERENCE, crc=crc32(b"a\n"))
    going_on = scheduler([first], b"a\n", b"b\n")
    task = going_on.next("a")
    assert task is not None
    assert (task.shard.key, task.shard.given, task.shard.lines_before) == ((0, 1), b"b\n", 1)
    with pytest.raises(CompeteError, match="block 1 differs"):
        scheduler([first], b"x\n").next("a")
    with pytest.raises(CompeteError, match="it is shorter"):
        scheduler([record((0, 1), REFERENCE, crc=1)]).next("a")
