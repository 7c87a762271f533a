"""A corpus cut into shards: units of work that depend on the input alone, never on who works on them.

Plain files are cut by byte ranges, Parquet files by row groups; small files share a shard. How many shards a compressed
file has is known when its end has been reached, so those are numbered as one goes: shard n holds the n-th `shard_bytes`
of decompressed text. A pipe is cut by the one process that can read it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from megatron_compete.data.bad_documents import BadDocument
from megatron_compete.data.inputs.lines import TextReader
from megatron_compete.data.inputs.rows import RowReader, row_group_bytes
from megatron_compete.data.inputs.sources import Source, total_bytes

SMALLEST_SHARD, LARGEST_SHARD = 1_000_000, 32_000_000
"""Bytes of input. The largest takes a core some seconds: what a stop has to wait for, and a kill can cost."""

SHARDS_WANTED = 1000
"""Enough to keep many workers evenly busy, where the corpus allows it."""

ShardKey = tuple[int, int]
"""Number of the (first) source, and number of the shard within it; in order of the corpus."""


class SourceRange(NamedTuple):
    """Bytes of one source, or row groups of a Parquet file."""

    source: int
    """Its number in the corpus."""

    start: int
    """Bytes of (decompressed) text, or row groups."""

    end: int | None
    """None is the end of the source."""


@dataclass(frozen=True)
class Shard:
    """One unit of work."""

    key: ShardKey
    ranges: tuple[SourceRange, ...]
    sources: dict[int, Source]
    """The ranges' sources, so that a shard can be handed to a process that knows nothing else."""

    given: bytes | None = None
    """The text itself, for a pipe."""

    lines_before: int = 0
    """Lines of the pipe before `given`."""


@dataclass
class Plan:
    """All work there is."""

    sources: list[Source]
    shard_bytes: int
    shards: list[Shard] = field(default_factory=list)
    """Those known from the beginning, in order."""

    streams: list[int] = field(default_factory=list)
    """Sources whose shards are numbered as one goes."""

    pipe: int | None = None
    """Number of the source that is a pipe."""

    def stream_shard(self, source: int, number: int) -> Shard:
        """Shard `number` of a compressed source."""
        range_ = SourceRange(source, number * self.shard_bytes, (number + 1) * self.shard_bytes)
        return Shard((source, number), (range_,), {source: self.sources[source]})


def default_shard_bytes(sources: Sequence[Source]) -> int:
    """Size of shards for this corpus, by its size alone."""
    return min(max(total_bytes(sources) // SHARDS_WANTED, SMALLEST_SHARD), LARGEST_SHARD)


def plan_shards(sources: Sequence[Source], shard_bytes: int) -> Plan:
    """Cut the corpus into shards of about `shard_bytes`."""
    plan = Plan(list(sources), shard_bytes)
    group: list[SourceRange] = []
    group_bytes = 0
    for number, source in enumerate(sources):
        small = source.format != "parquet" and source.bytes < shard_bytes and not _is_stream(source)
        if group and (not small or group_bytes + source.bytes > shard_bytes):
            plan.shards.append(_shard(plan, group, 0))
            group, group_bytes = [], 0
        if small and not source.is_pipe:
            group.append(SourceRange(number, 0, None))
            group_bytes += source.bytes
        else:
            _plan_one(plan, number, source)
    if group:
        plan.shards.append(_shard(plan, group, 0))
    return plan


def _is_stream(source: Source) -> bool:
    return source.compression is not None and not source.is_one_document


def _plan_one(plan: Plan, number: int, source: Source) -> None:
    if source.is_pipe:
        plan.pipe = number
    elif _is_stream(source):
        plan.streams.append(number)
    else:
        ranges = _row_groups(number, source, plan.shard_bytes) if source.format == "parquet" else None
        ranges = ranges or _byte_ranges(number, source, plan.shard_bytes)
        plan.shards.extend(_shard(plan, [one], index) for index, one in enumerate(ranges))


def _shard(plan: Plan, ranges: Sequence[SourceRange], number: int) -> Shard:
    key = (ranges[0].source, number)
    return Shard(key, tuple(ranges), {one.source: plan.sources[one.source] for one in ranges})


def _byte_ranges(number: int, source: Source, shard_bytes: int) -> list[SourceRange]:
    if source.is_one_document:
        return [SourceRange(number, 0, None)]
    starts = range(0, source.bytes, shard_bytes)
    return [SourceRange(number, start, min(start + shard_bytes, source.bytes)) for start in starts]


def _row_groups(number: int, source: Source, shard_bytes: int) -> list[SourceRange]:
    """Consecutive row groups of about `shard_bytes` together; a file whose index is damaged is one range."""
    try:
        sizes = row_group_bytes(source)
    except BadDocument:  # whoever reads it reports it
        return [SourceRange(number, 0, None)]
    ranges, start, size = [], 0, 0
    for index, group_bytes in enumerate(sizes):
        if index > start and size + group_bytes > shard_bytes:
            ranges.append(SourceRange(number, start, index))
            start, size = index, 0
        size += group_bytes
    return [*ranges, SourceRange(number, start, None)]


def make_reader(source: Source, keys: Sequence[str], given: bytes | None = None) -> TextReader | RowReader:
    """What reads ranges of `source`."""
    return RowReader(source, keys) if source.format == "parquet" else TextReader(source, given)


def cut_stream(stream: BinaryIO, source: Source, shard_bytes: int) -> Iterator[bytes]:
    """A pipe in blocks of about `shard_bytes`, each of whole documents."""
    if source.is_one_document:
        yield stream.read()
        return
    while block := stream.read(shard_bytes):
        rest = [stream.readline()]
        while rest[-1] and source.format == "text" and not _ends_paragraph(block, rest):
            rest.append(stream.readline())
        yield b"".join((block, *rest))


def _ends_paragraph(block: bytes, rest: list[bytes]) -> bool:
    """Whether the last line read is a whole line, and blank."""
    return rest[-1].isspace() and (len(rest) > 1 or block.endswith(b"\n"))
