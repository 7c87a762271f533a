"""One shard: its documents read, encoded in batches and written as a part."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from megatron_compete.data.bad_documents import BadDocument, OnError, fatal, place_of
from megatron_compete.data.engines import BatchEncoder, EngineChoice
from megatron_compete.data.inputs.lines import Raw, TextReader
from megatron_compete.data.inputs.rows import RowReader
from megatron_compete.data.inputs.shards import Shard, SourceRange, make_reader
from megatron_compete.data.inputs.texts import Text, texts_of
from megatron_compete.data.preprocessing.encode import DocumentEncoder, DocumentTexts
from megatron_compete.data.preprocessing.line_numbers import lines_before
from megatron_compete.data.preprocessing.parts import PartWriter, ShardRecord

BATCH_DOCUMENTS = 512
BATCH_CHARACTERS = 1_000_000
"""A batch is encoded when it holds this much; a longer document makes a batch of its own."""


@dataclass
class _Batch:
    documents: list[DocumentTexts] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    characters: int = 0

    def add(self, number: int, texts: DocumentTexts) -> None:
        self.documents.append(texts)
        self.numbers.append(number)
        self.characters += sum(map(_characters, texts.values()))

    @property
    def is_full(self) -> bool:
        return len(self.documents) >= BATCH_DOCUMENTS or self.characters >= BATCH_CHARACTERS


class ShardWorker:
    """Turns shards into parts, one after the other.

    Args:
        encoder: from documents to ids.
        parts: where they go.
        engine: whose ids they are.
        on_error: whether a bad document ends the run.
    """

    def __init__(self, encoder: DocumentEncoder, parts: PartWriter, engine: EngineChoice, on_error: OnError) -> None:
        self.engine = engine
        self._encoder = encoder
        self._parts = parts
        self._on_error = on_error
        self._reader: TextReader | RowReader | None = None
        self._text_bytes = 0

    def run(self, shard: Shard) -> ShardRecord:
        """Do one shard.

        Raises:
            CompeteError: a bad document (`on_error="fail"`); names file and line.
            EngineDiffers: the engine gave other ids than the reference.
        """
        engine = self._encoder.engine
        checked, self._text_bytes = engine.checked, 0
        self._parts.begin()
        engine.start_shard((shard.key[0] << 32) + shard.key[1])
        disk_bytes, ranges, at_end = 0, [], False
        for index, range_ in enumerate(shard.ranges):
            reader = self._reader_of(shard, range_)
            before = self._parts.documents
            self._run_piece(shard, index, reader)
            disk_bytes += reader.disk_bytes()
            at_end = reader.at_end
            ranges.append([*range_, reader.lines, self._parts.documents - before])
        return self._parts.finish(
            np.dtype(self._encoder.dtype).itemsize,
            key=shard.key,
            ranges=ranges,
            engine=self.engine.name,
            at_end=at_end,
            disk_bytes=disk_bytes,
            text_bytes=self._text_bytes,
            checked=engine.checked - checked,
            differing=0,
            given_crc32=None if shard.given is None else zlib.crc32(shard.given),
        )

    def use(self, encoder: DocumentEncoder, engine: EngineChoice) -> None:
        """Go on with another engine."""
        self._encoder, self.engine = encoder, engine

    def _reader_of(self, shard: Shard, range_: SourceRange) -> TextReader | RowReader:
        """The reader of the range's source; that of the last one is kept, because it may be a stream."""
        source = shard.sources[range_.source]
        if self._reader is None or self._reader.source != source or shard.given is not None:
            if self._reader is not None:
                self._reader.close()
            self._reader = make_reader(source, self._encoder.keys, shard.given)
        return self._reader

    def _run_piece(self, shard: Shard, index: int, reader: TextReader | RowReader) -> None:
        range_, batch = shard.ranges[index], _Batch()
        for raw, bad in _documents(reader, range_):
            self._text_bytes += raw.size
            try:
                if bad is not None:
                    raise bad
                batch.add(raw.number, texts_of(reader.source, raw, self._encoder.keys))
            except BadDocument as fault:
                self._add_fault(shard, index, raw.number, fault)
            if batch.is_full:
                self._encode(shard, index, batch)
                batch = _Batch()
        self._encode(shard, index, batch)

    def _encode(self, shard: Shard, index: int, batch: _Batch) -> None:
        if not batch.documents:
            return
        encoded = self._encoder.encode(batch.documents)
        for place, bad in encoded.faults:
            self._add_fault(shard, index, batch.numbers[place], bad)
        self._parts.add(encoded, len(batch.documents) - len(encoded.faults))

    def _add_fault(self, shard: Shard, index: int, number: int, bad: BadDocument) -> None:
        range_ = shard.ranges[index]
        source = shard.sources[range_.source]
        if shard.given is not None:
            number += shard.lines_before
        if self._on_error == "fail":
            if number and shard.given is None:
                number += lines_before(source, range_)
            raise fatal(place_of(source.name, number, source.unit), bad)
        self._parts.add_fault(index, number, bad)

    def close(self) -> None:
        """Close all files."""
        if self._reader is not None:
            self._reader.close()
        self._parts.close()


def _documents(reader: TextReader | RowReader, range_: SourceRange) -> Iterator[tuple[Raw, BadDocument | None]]:
    """Documents of a range; where the file is damaged, the fault comes last."""
    try:
        for raw in reader.read(range_.start, range_.end):
            yield raw, None
    except BadDocument as bad:
        yield Raw(reader.failed_at, 0, None), bad


def _characters(text: Text) -> int:
    return len(text) if isinstance(text, str) else sum(map(len, text))


def make_document_encoder(
    engine: BatchEncoder, keys: tuple[str, ...], vocab_size: int, eod: int | None, reject_empty: bool
) -> DocumentEncoder:
    """An encoder that stores ids as Megatron would for this vocabulary."""
    from megatron.core.datasets.indexed_dataset import DType

    return DocumentEncoder(engine, keys, vocab_size, eod, DType.optimal_dtype(vocab_size), reject_empty)
