"""Text to train a tokenizer on: an even sample of a corpus, cut into chunks that keep their newlines."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from megatron_compete.data.corpus import BadLine, SkipLog, parse_line, read_lines, total_bytes
from megatron_compete.data.progress import CorpusProgress

CHUNK_CHARACTERS = 4000
"""Longest chunk: SentencePiece drops what is over its length limit, and learns nothing across two chunks."""


@dataclass
class Sample:
    """Chunks of text, and how much text they are."""

    chunks: list[str] = field(default_factory=list)
    documents: int = 0
    """Documents that are in it, wholly or in part."""

    bytes: int = 0
    """UTF-8 bytes of all chunks."""

    def add(self, text: str, limit: int) -> None:
        """Take in one document, as far as `limit` bytes in all go; 0 is no limit. One chunk is always taken."""
        before = self.bytes
        for chunk in chunk_text(text):
            size = len(chunk.encode("utf-8"))
            if limit and self.bytes and self.bytes + size > limit:
                break
            self.chunks.append(chunk)
            self.bytes += size
        self.documents += self.bytes > before


def read_sample(files: Sequence[str], key: str, limit: int, skips: SkipLog, log_interval: int) -> Sample:
    """About `limit` bytes of text, from lines spread evenly over the corpus; 0 takes everything.

    A line is taken whenever less than its share was taken of the bytes before it. That needs no random numbers, looks
    at no line's own length, and leaves the lines in between unparsed (their faults too).

    Raises:
        CompeteError: at a bad line, unless `skips` lets it pass.
    """
    corpus_bytes = total_bytes(files)
    share = min(1.0, limit / corpus_bytes) if limit else 1.0
    sample, seen, taken = Sample(), 0, 0
    with CorpusProgress("reading", corpus_bytes, log_interval) as progress:
        for line in read_lines(files):
            if taken <= share * seen:
                taken += len(line.raw)
                try:
                    text = parse_line(line.raw, [key])[key]
                    sample.add(text if isinstance(text, str) else "".join(text), limit)
                except BadLine as bad:
                    skips.add(line, bad)
            seen += len(line.raw)
            progress.advance(1, len(line.raw))
    return sample


def chunk_text(text: str, characters: int = CHUNK_CHARACTERS) -> Iterator[str]:
    """Cut `text` into pieces of at most `characters`, after a newline where there is one; nothing is lost."""
    start = 0
    while start < len(text):
        end = start + characters
        newline = text.rfind("\n", start, end) if end < len(text) else -1
        end = newline + 1 if newline >= 0 else end
        yield text[start:end]
        start = end
