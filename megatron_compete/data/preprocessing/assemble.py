"""Parts to dataset: ids are copied file to file, indices are joined, and everything appears under its name at once."""

import json
import os
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_compete.data.bad_documents import SkipLog, place_of
from megatron_compete.data.indexed import IndexChunk, copy_range, write_index
from megatron_compete.data.inputs.sources import Source
from megatron_compete.data.preprocessing.line_numbers import counts_from_range
from megatron_compete.data.preprocessing.parts import ShardRecord

_OPEN_PARTS = 64


class _OpenParts:
    """File descriptors of part files; the ones used last stay open."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, int] = OrderedDict()

    def get(self, path: str) -> int:
        if path not in self._open:
            self._open[path] = os.open(path, os.O_RDONLY)
            if len(self._open) > _OPEN_PARTS:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(path)
        return self._open[path]

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


@dataclass
class Assembly:
    """Finished shards in the order of the corpus, as a whole.

    Args:
        records: of all shards.
        sources: the corpus.
        dtype: what ids are stored as.
    """

    records: Sequence[ShardRecord]
    sources: Sequence[Source]
    dtype: type[Any]

    def __post_init__(self) -> None:
        self.records = sorted(self.records, key=lambda record: record.key)

    @property
    def documents(self) -> int:
        """Documents of each dataset, those without tokens included."""
        return sum(record.documents for record in self.records)

    def total(self, field: str) -> int:
        """Sum of a field over all shards."""
        return sum(getattr(record, field) or 0 for record in self.records)

    def sequences(self, key: int) -> int:
        """Sequences of the key with this number."""
        return sum(record.datasets[key].sequences for record in self.records)

    def tokens(self, key: int) -> int:
        """Tokens of the key with this number."""
        return sum(record.datasets[key].tokens for record in self.records)

    def write_dataset(self, key: int, bin_path: str, idx_path: str) -> None:
        """Write one key's `.bin` and `.idx`."""
        parts = _OpenParts()
        target = os.open(bin_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            for record in self.records:
                dataset = record.datasets[key]
                part = parts.get(f"{record.part}.{dataset.number}.bin")
                copy_range(part, target, dataset.ids.offset, dataset.ids.bytes)
            write_index(idx_path, self.dtype, self.sequences(key), self.documents, lambda: self._index(key, parts))
        finally:
            os.close(target)
            parts.close()

    def _index(self, key: int, parts: _OpenParts) -> Iterator[IndexChunk]:
        for record in self.records:
            sequences, offset = record.datasets[key].sequences, record.datasets[key].index.offset
            descriptor = parts.get(record.part + ".index")
            lengths = os.pread(descriptor, 4 * sequences, offset)
            ends = os.pread(descriptor, 8 * record.documents, offset + 4 * sequences)
            yield IndexChunk(np.frombuffer(lengths, dtype=np.int32), np.frombuffer(ends, dtype=np.int64))

    def write_faults(self, path: str) -> SkipLog:
        """List the documents that were left out, a JSON object a line; their counts and the first of each kind."""
        skips, faulty = SkipLog("skip"), set[str]()
        with open(path, "w", encoding="utf-8", newline="\n") as stream:
            for source, number, kind, reason in self._faults():
                skips.count(kind, f"{place_of(source.name, number, source.unit)}: {reason}")
                faulty.add(source.name)
                fault = {"file": source.name, source.unit: number, "kind": kind, "reason": reason}
                stream.write(json.dumps(fault, ensure_ascii=False) + "\n")
        used = {self.sources[one[0] or 0].name for record in self.records for one in record.ranges if one[4]}
        skips.unused = sorted(faulty - used)
        return skips

    def _faults(self) -> Iterator[tuple[Source, int, str, str]]:
        """Source, line or row in it (0 if the whole file is meant), kind and reason."""
        lines_before: Counter[int | None] = Counter()
        for record in self.records:
            befores = []
            for number_of_source, _, _, lines, _ in record.ranges:
                befores.append(lines_before[number_of_source])
                lines_before[number_of_source] += lines or 0
            for index, number, kind, reason in _read_faults(record):
                source = self.sources[record.ranges[index][0] or 0]
                before = befores[index] if number and counts_from_range(source) else 0
                yield source, number + before, kind, reason


def _read_faults(record: ShardRecord) -> Iterator[tuple[int, int, str, str]]:
    """The shard's faults as its worker wrote them down, in the order of the corpus."""
    with open(record.part + ".faults", "rb") as stream:
        stream.seek(record.faults.offset)
        faults = stream.read(record.faults.bytes)
    yield from sorted(tuple(json.loads(line)) for line in faults.splitlines())
