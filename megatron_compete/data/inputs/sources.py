"""One input file: where it lies, what it holds, how it is compressed."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from megatron_compete.errors import CompeteError

Format = Literal["jsonl", "parquet", "text"]
FORMATS: tuple[str, ...] = get_args(Format)

TextDocuments = Literal["file", "blank-line"]
TEXT_DOCUMENTS: tuple[str, ...] = get_args(TextDocuments)

STDIN = "-"
"""The input that names standard input."""

COMPRESSIONS = {".gz": "gz", ".zst": "zst", ".zstd": "zst", ".bz2": "bz2"}
_SUFFIXES: dict[str, Format] = {
    **dict.fromkeys((".jsonl", ".json", ".ndjson"), "jsonl"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".txt", ".text"), "text"),
}


@dataclass(frozen=True)
class Source:
    """One input file, or standard input."""

    path: str
    """As it was named; `STDIN` for standard input."""

    format: Format
    compression: str | None
    """`gz`, `zst`, `bz2` or None."""

    bytes: int
    """Size on disk; 0 for standard input."""

    text_documents: TextDocuments = "file"
    """What a document of plain text is: the file, or what lies between blank lines."""

    @property
    def is_stdin(self) -> bool:
        """Whether this is standard input, which can be read once and by one process."""
        return self.path == STDIN

    @property
    def name(self) -> str:
        """The path as it appears in messages."""
        return "<stdin>" if self.is_stdin else self.path

    @property
    def unit(self) -> str:
        """What documents are counted by in messages."""
        return "row" if self.format == "parquet" else "line"

    @property
    def is_one_document(self) -> bool:
        """Whether the whole file is one document."""
        return self.format == "text" and self.text_documents == "file"


def make_source(path: str, wanted: str, text_documents: TextDocuments) -> Source:
    """A source with its format and compression taken from the file's name.

    Args:
        wanted: a format, or `auto` to go by the suffix; a name that says nothing is JSON Lines.
    Raises:
        CompeteError: a compressed Parquet file, or Parquet on standard input.
    """
    compression, known = known_form(path)
    form = known or "jsonl" if wanted == "auto" else wanted
    if form == "parquet" and (compression or path == STDIN):
        where = "standard input" if path == STDIN else f"the compressed file {path}"
        raise CompeteError(f"--input {path}: Parquet cannot be read from {where}: give the .parquet file itself")
    size = 0 if path == STDIN else os.path.getsize(path)
    return Source(path, form, compression, size, text_documents)  # type: ignore[arg-type]


def known_form(path: str) -> tuple[str | None, Format | None]:
    """Compression and format that a name's suffixes tell; None for what they do not."""
    stem, suffix = os.path.splitext(path.lower())
    compression = COMPRESSIONS.get(suffix)
    if compression:
        suffix = os.path.splitext(stem)[1]
    return compression, _SUFFIXES.get(suffix)


def total_bytes(sources: Sequence[Source]) -> int:
    """Size of the corpus on disk."""
    return sum(source.bytes for source in sources)
