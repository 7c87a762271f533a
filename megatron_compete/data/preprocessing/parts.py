"""A worker's part files: what it has tokenised, and the journal that says which shards of it are finished.

Each worker of each run appends to files of its own, `NAME.0.bin` for the first key's ids and so on, `NAME.index`,
`NAME.faults` and, after everything else, a line a shard in `NAME.journal`. Nobody ever changes another one's files, so
whatever a kill leaves behind is either named by a whole journal line, with checksums, or is nothing.
"""

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from megatron_compete.data.bad_documents import BadDocument
from megatron_compete.data.inputs.shards import ShardKey
from megatron_compete.data.preprocessing.encode import EncodedBatch

JOURNAL = ".journal"
_READ_BYTES = 1 << 22


class Extent(NamedTuple):
    """A range of a part file and its checksum."""

    offset: int
    bytes: int
    crc32: int


@dataclass(frozen=True)
class DatasetPart:
    """One key's share of a shard."""

    key: str
    number: int
    """Of its `.bin` among the part files."""

    ids: Extent
    index: Extent
    """Lengths of its sequences (int32), then its document ends (int64)."""

    sequences: int
    tokens: int


@dataclass(frozen=True)
class ShardRecord:
    """A finished shard; a line of the journal."""

    key: ShardKey
    ranges: list[list[int | None]]
    """[source, start, end, lines, documents] of each range of a source (`pieces` in the journal); lines (or rows) are
    those that belong to it, documents those that are in the dataset."""

    engine: str
    """What tokenised it."""

    documents: int
    empty: int
    datasets: list[DatasetPart]
    """In the order of the keys."""

    faults: Extent
    """JSON lines [range, number, kind, reason]."""

    fault_counts: dict[str, int]
    at_end: bool
    """Whether the source ended with this shard."""

    disk_bytes: int
    text_bytes: int
    checked: int
    """Texts that were compared with the reference."""

    differing: int
    """Always 0 since 0.2.0: an engine that differs once does no more."""
    given_crc32: int | None = None
    """Of the block of standard input it was made of."""

    part: str = ""
    """Path of the part files without suffix; not in the journal."""

    def line(self) -> bytes:
        """The journal's line."""
        record = asdict(self)
        del record["part"]
        record["pieces"] = record.pop("ranges")
        return json.dumps(record, separators=(",", ":")).encode() + b"\n"

    def of_keys(self, keys: Sequence[str]) -> "ShardRecord | None":
        """This shard as a job with fewer keys would have made it; None where that cannot be told.

        A key without any token changed nothing for the others, unless it is the reason why a document was left out.
        """
        dropped = [dataset for dataset in self.datasets if dataset.key not in keys]
        if not dropped:
            return self
        if self.fault_counts or any(dataset.tokens for dataset in dropped):
            return None
        return replace(self, datasets=[dataset for dataset in self.datasets if dataset.key in keys])


def read_journal(path: str) -> Iterator[ShardRecord]:
    """Finished shards of one worker; a line that a kill cut off is none."""
    with open(path, "rb") as stream:
        for line in stream:
            if line.endswith(b"\n"):
                try:
                    yield _record(json.loads(line), path.removesuffix(JOURNAL))
                except (ValueError, KeyError, TypeError):  # a disk that lost power may hold anything
                    return


def _record(fields: dict[str, Any], part: str) -> ShardRecord:
    extents = ("ids", "index")
    parts = [DatasetPart(**one | {name: Extent(*one[name]) for name in extents}) for one in fields["datasets"]]
    fields["ranges"] = fields.pop("pieces")
    changed = {"key": tuple(fields["key"]), "faults": Extent(*fields["faults"])}
    return ShardRecord(**fields | changed | {"datasets": parts, "part": part})


def is_whole(record: ShardRecord) -> bool:
    """Whether the part files still hold what the journal says; reads it all."""
    extents = [(f".{dataset.number}.bin", dataset.ids) for dataset in record.datasets]
    extents += [(".index", dataset.index) for dataset in record.datasets] + [(".faults", record.faults)]
    return all(_checksum(record.part + suffix, extent) == extent.crc32 for suffix, extent in extents)


def _checksum(path: str, extent: Extent) -> int | None:
    crc, left = 0, extent.bytes
    try:
        with open(path, "rb") as stream:
            stream.seek(extent.offset)
            while left and (block := stream.read(min(left, _READ_BYTES))):
                crc, left = zlib.crc32(block, crc), left - len(block)
    except FileNotFoundError:
        return None
    return None if left else crc


class _Appended:
    """A file that grows by extents."""

    def __init__(self, path: str) -> None:
        self._stream: BinaryIO = open(path, "xb")  # noqa: SIM115
        self.begin()

    def begin(self) -> None:
        """Start an extent at the end of the last one, over whatever was written since."""
        self._stream.flush()
        self._offset = getattr(self, "_end", 0)
        self._stream.seek(self._offset)
        self._stream.truncate()
        self._bytes = self._crc = 0

    def write(self, block: bytes | memoryview) -> None:
        self._stream.write(block)
        self._crc = zlib.crc32(block, self._crc)
        self._bytes += len(block)

    def finish(self) -> Extent:
        """Hand the extent over to the system, which keeps it even if this process is killed."""
        self._stream.flush()
        self._end = self._offset + self._bytes
        return Extent(self._offset, self._bytes, self._crc)

    def close(self) -> None:
        self._stream.close()


@dataclass
class _Counts:
    documents: int = 0
    empty: int = 0
    faults: dict[str, int] = field(default_factory=dict)


class PartWriter:
    """Writes one worker's part files.

    Args:
        part: path without suffix; its files must not exist.
        keys: one dataset each.
    """

    def __init__(self, part: str, keys: Sequence[str]) -> None:
        os.makedirs(os.path.dirname(part), exist_ok=True)
        self._part, self._keys = part, keys
        self._ids = [_Appended(f"{part}.{index}.bin") for index in range(len(keys))]
        self._index, self._faults = _Appended(part + ".index"), _Appended(part + ".faults")
        self._journal = os.open(part + JOURNAL, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
        self.begin()

    def begin(self) -> None:
        """Begin a shard; what was written of an unfinished one is dropped."""
        for file in (*self._ids, self._index, self._faults):
            file.begin()
        self._lengths: list[list[np.ndarray]] = [[] for _ in self._keys]
        self._sentences: list[list[np.ndarray]] = [[] for _ in self._keys]
        self._counts = _Counts()

    def add(self, batch: EncodedBatch, documents: int) -> None:
        """Append a batch of `documents` good ones."""
        for index, key in enumerate(self._keys):
            encoded = batch.keys[key]
            self._ids[index].write(encoded.ids.tobytes())
            self._lengths[index].append(np.array(encoded.lengths, dtype=np.int32))
            self._sentences[index].append(np.array(encoded.sentences, dtype=np.int64))
        self._counts.documents += documents
        self._counts.empty += batch.empty

    @property
    def documents(self) -> int:
        """Good documents of this shard so far."""
        return self._counts.documents

    def add_fault(self, range_: int, number: int, bad: BadDocument) -> None:
        """Note a document that is left out."""
        fault = json.dumps([range_, number, bad.kind, bad.reason], ensure_ascii=False)
        self._faults.write(fault.encode("utf-8", "backslashreplace") + b"\n")
        self._counts.faults[bad.kind] = self._counts.faults.get(bad.kind, 0) + 1

    def finish(self, item_bytes: int, **known: Any) -> ShardRecord:
        """Finish the shard and enter it in the journal.

        Args:
            item_bytes: size of an id.
            known: the fields of `ShardRecord` that the writer cannot know.
        """
        datasets = []
        for number, key in enumerate(self._keys):
            ids, lengths = self._ids[number].finish(), _join(self._lengths[number], np.int32)
            self._index.begin()
            self._index.write(lengths.tobytes())
            self._index.write(np.cumsum(_join(self._sentences[number], np.int64)).tobytes())
            index = self._index.finish()
            datasets.append(DatasetPart(key, number, ids, index, len(lengths), ids.bytes // item_bytes))
        record = ShardRecord(
            documents=self._counts.documents,
            empty=self._counts.empty,
            datasets=datasets,
            faults=self._faults.finish(),
            fault_counts=self._counts.faults,
            **known,
        )
        line = record.line()
        if os.write(self._journal, line) != len(line):
            raise OSError(28, "No space left on device", self._part + JOURNAL)
        return replace(record, part=self._part)

    def close(self) -> None:
        """Close all files."""
        for file in (*self._ids, self._index, self._faults):
            file.close()
        os.close(self._journal)


def _join(arrays: Sequence[np.ndarray], dtype: type[Any]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=dtype)
