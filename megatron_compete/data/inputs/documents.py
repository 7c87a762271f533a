"""A corpus read in order by one process, and a sample of it."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.bad_documents import BadDocument, SkipLog, place_of
from megatron_compete.data.inputs.lines import Raw, TextReader
from megatron_compete.data.inputs.rows import RowReader
from megatron_compete.data.inputs.shards import make_reader
from megatron_compete.data.inputs.sources import Source, total_bytes
from megatron_compete.data.inputs.texts import texts_of

SAMPLE_PLACES = 64
"""Places of a corpus that a sample is taken from."""


class Document(NamedTuple):
    """One document's text and where it came from; `number` counts lines or rows from 1."""

    file: str
    number: int
    text: str


def read_documents(
    sources: Sequence[Source], key: str, skips: SkipLog, on_bytes: Callable[[int], object] | None = None
) -> Iterator[Document]:
    """Documents of all sources in order; a list of sentences is joined into one text.

    Args:
        on_bytes: told how many bytes on disk have been taken in since it was told last.
    Raises:
        CompeteError: at the first bad document, unless `skips` lets it pass.
    """
    for source in sources:
        reader = open_reader(source, [key])
        skipped, used = skips.total, 0
        for raw in read_all(reader, skips):
            if on_bytes is not None:
                on_bytes(reader.disk_bytes())
            try:
                text = texts_of(source, raw, [key])[key]
            except BadDocument as bad:
                skips.add(place_of(source.name, raw.number, source.unit), bad)
                continue
            used += 1
            yield Document(source.name, raw.number, text if isinstance(text, str) else "".join(text))
        reader.close()
        if skips.total > skipped and not used:
            skips.unused.append(source.name)


def open_reader(source: Source, keys: Sequence[str]) -> TextReader | RowReader:
    """A reader of a whole source."""
    return make_reader(source, keys)


def read_all(reader: TextReader | RowReader, skips: SkipLog) -> Iterator[Raw]:
    """All documents of a source, unparsed; ends where the file is damaged, if `skips` lets it pass."""
    try:
        yield from reader.read(0, None)
    except BadDocument as bad:
        skips.add(place_of(reader.source.name, reader.failed_at, reader.source.unit), bad)


def sample_texts(sources: Sequence[Source], keys: Sequence[str], limit_bytes: int) -> list[str]:
    """About `limit_bytes` of texts from places spread evenly over the corpus, without reading it all.

    Plain files are entered where the places lie; of compressed files only the beginning is read, of Parquet files the
    first row group, of a pipe nothing. Bad documents are passed over.
    """
    files = [source for source in sources if not source.is_pipe]
    if total_bytes(files) <= limit_bytes and all(source.compression is None for source in files):
        return [text for source in files for text in _texts_at(source, 0, keys)]
    found: list[str] = []
    places = _places(files)
    for source, start in places:
        budget = limit_bytes / len(places)
        for text in _texts_at(source, start, keys):
            found.append(text)
            budget -= len(text)
            if budget <= 0:
                break
    return found


def _places(files: Sequence[Source]) -> list[tuple[Source, int]]:
    """Up to `SAMPLE_PLACES` different places: a source and a byte to start at."""
    step = max(1, total_bytes(files) // SAMPLE_PLACES)
    places: dict[tuple[Source, int], None] = {}
    before = 0
    for source in files:
        first = -(-before // step) * step  # the first place at or after this source's beginning
        enterable = source.compression is None and source.format == "jsonl"
        for place in range(first, before + source.bytes, step):
            places[source, place - before if enterable else 0] = None
        before += source.bytes
    return list(islice(places, SAMPLE_PLACES))


def _texts_at(source: Source, start: int, keys: Sequence[str]) -> Iterator[str]:
    reader = make_reader(source, keys)
    try:
        for raw in reader.read(start, None):
            try:
                texts = texts_of(source, raw, keys)
            except BadDocument:
                continue
            for text in texts.values():
                yield from [text] if isinstance(text, str) else text
    except BadDocument:
        return
    finally:
        reader.close()


def no_documents(sources: Sequence[Source], key: str, skips: SkipLog) -> CompeteError:
    """The error to raise when a pass over `sources` met no text under `key`."""
    names = ", ".join(source.name for source in sources[:3])
    more = f" and {len(sources) - 3} more" if len(sources) > 3 else ""
    detail = f": {'; '.join(skips.report())}" if skips.total else ""
    return CompeteError(f"no document with any text under {key!r} in {names}{more}{detail}")
