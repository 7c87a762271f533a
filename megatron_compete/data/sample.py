"""Text to train a tokenizer on: a sample of a corpus, cut into chunks that keep their newlines.

Every chunk has a key, the hash of its document's text and its place in it, and the chunks with the smallest keys are the
sample. That is uniform over the text, and depends on the documents alone: not on their order, the number of files or
how they are compressed. Documents that occur twice are in or out together.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from megatron_compete.common.progress import Progress
from megatron_compete.data.bad_documents import SkipLog
from megatron_compete.data.inputs import Source, read_documents, total_bytes

CHUNK_CHARACTERS = 4000
"""Longest chunk: SentencePiece drops what is over its length limit, and learns nothing across two chunks."""

_KEY_BYTES = 16


@dataclass(frozen=True)
class Sample:
    """Chunks of text in the order of their keys, and how much text they are."""

    chunks: tuple[str, ...]
    documents: int
    """Documents that are in it, wholly or in part."""

    bytes: int
    """UTF-8 bytes of all chunks."""


class _Smallest:
    """The chunks with the smallest keys that fit into `limit` bytes; 0 is no limit. One chunk always fits."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._largest_first: list[tuple[int, str, int, int]] = []  # (-key, chunk, bytes, document)
        self._bytes = 0
        self._bound = 0
        """Negative key of the smallest chunk that was turned away; 0 before that."""

    def add_document(self, number: int, text: str) -> None:
        raw = text.encode("utf-8")
        digest = blake2b(raw, digest_size=_KEY_BYTES)
        for place, chunk in enumerate(chunk_text(text)):
            key = digest.copy()
            key.update(b"\0%d" % place)
            self._add(-1 - int.from_bytes(key.digest(), "big"), chunk, number)

    def _add(self, negative: int, chunk: str, number: int) -> None:
        if self._bound and negative <= self._bound:
            return
        size = len(chunk.encode("utf-8"))
        heapq.heappush(self._largest_first, (negative, chunk, size, number))
        self._bytes += size
        while self._limit and self._bytes > self._limit and len(self._largest_first) > 1:
            self._bound, _, size, _ = heapq.heappop(self._largest_first)
            self._bytes -= size

    def sample(self) -> Sample:
        ordered = sorted(self._largest_first, reverse=True)
        return Sample(tuple(chunk for _, chunk, _, _ in ordered), len({entry[3] for entry in ordered}), self._bytes)


def read_sample(sources: Sequence[Source], key: str, limit: int, skips: SkipLog) -> Sample:
    """About `limit` bytes of text from the whole corpus; 0 takes everything.

    Raises:
        CompeteError: at a bad document, unless `skips` lets it pass.
    """
    smallest = _Smallest(limit)
    with Progress("reading", total_bytes(sources)) as progress:
        documents = read_documents(sources, key, skips, on_bytes=lambda size: progress.advance(0, size))
        for number, document in enumerate(documents):
            smallest.add_document(number, document.text)
            progress.advance(1, 0)
    return smallest.sample()


def chunk_text(text: str, characters: int = CHUNK_CHARACTERS) -> Iterator[str]:
    """Cut `text` into pieces of at most `characters`, after a newline where there is one; nothing is lost."""
    start = 0
    while start < len(text):
        end = start + characters
        newline = text.rfind("\n", start, end) if end < len(text) else -1
        end = newline + 1 if newline >= 0 else end
        yield text[start:end]
        start = end
