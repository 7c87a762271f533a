"""One input file: where it lies, what it holds, how it is compressed."""

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.inputs.signatures import HEAD_BYTES, compression_of, is_parquet

Format = Literal["jsonl", "parquet", "text"]
FORMATS: tuple[str, ...] = get_args(Format)

TextDocuments = Literal["file", "blank-line"]
TEXT_DOCUMENTS: tuple[str, ...] = get_args(TextDocuments)

STDIN = "-"
"""The input that names standard input."""

COMPRESSIONS = {".gz": "gz", ".zst": "zst", ".zstd": "zst", ".bz2": "bz2", ".xz": "xz", ".lz4": "lz4"}
_SUFFIXES: dict[str, Format] = {
    **dict.fromkeys((".jsonl", ".json", ".ndjson"), "jsonl"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".txt", ".text"), "text"),
}
_NUMBER = re.compile(r"(\.\d+|[.-]\d+-of-\d+)$")
"""What rotated and sharded files have after their suffix: `log.jsonl.1`, `c4.json-00000-of-01024`."""


@dataclass(frozen=True)
class Source:
    """One input file, or a pipe."""

    path: str
    """As it was named; `STDIN` for standard input."""

    format: Format
    compression: str | None
    """`gz`, `zst`, `bz2`, `xz`, `lz4` or None."""

    bytes: int
    """Size on disk; 0 for a pipe."""

    text_documents: TextDocuments = "file"
    """What a document of plain text is: the file, or what lies between blank lines."""

    is_pipe: bool = False
    """Standard input or a named pipe, which can be read once and by one process."""

    @property
    def is_stdin(self) -> bool:
        """Whether this is standard input."""
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
    """A source with its format and compression.

    They are the content's where its first bytes tell them, and else the name's.

    Args:
        wanted: a format, or `auto`; a name and a content that say nothing are JSON Lines.
    Raises:
        CompeteError: no file or pipe, or Parquet that is compressed, on a pipe, or not `wanted`.
    """
    named, known = known_form(path)
    form = known or "jsonl" if wanted == "auto" else wanted
    mode = stat.S_IFIFO if path == STDIN else os.stat(path).st_mode
    if stat.S_ISFIFO(mode):
        _refuse_parquet(path, form, "a pipe")
        return Source(path, form, None, 0, text_documents, is_pipe=True)  # type: ignore[arg-type]
    if not stat.S_ISREG(mode):
        raise CompeteError(f"--input {path} is neither a file nor a folder nor a pipe")
    head, tail = _ends(path)
    compression = compression_of(head, named)
    if compression is not None:
        _refuse_parquet(path, form, "a compressed file")
    elif is_parquet(head) and (form == "jsonl" or is_parquet(tail)):
        if wanted not in ("auto", "parquet"):
            raise CompeteError(f"--input-format {wanted}, but {path} is Parquet: leave the flag out, or the file")
        form = "parquet"
    return Source(path, form, compression, os.path.getsize(path), text_documents)  # type: ignore[arg-type]


def _refuse_parquet(path: str, form: str, what: str) -> None:
    if form == "parquet":
        raise CompeteError(
            f"--input {path} is {what}, which Parquet cannot be read from: give the .parquet file itself"
        )


def _ends(path: str) -> tuple[bytes, bytes]:
    with open(path, "rb") as stream:
        head = stream.read(HEAD_BYTES)
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - 4))
        return head, stream.read(4)


def misnamed(source: Source, wanted: str) -> str | None:
    """What a source is, if its name says otherwise.

    Args:
        wanted: as `make_source` takes it.
    """
    named, known = known_form(source.path)
    if source.compression != named and not source.is_pipe:
        what = "not compressed" if source.compression is None else f"{source.compression} data"
        return f"{source.path} is {what}, whatever its name says"
    if source.format == "parquet" and "parquet" not in (wanted, known):
        return f"{source.path} is Parquet, whatever its name says"
    return None


def known_form(path: str) -> tuple[str | None, Format | None]:
    """Compression and format that a name's suffixes tell; None for what they do not."""
    stem, suffix = os.path.splitext(_NUMBER.sub("", path.lower()))
    compression = COMPRESSIONS.get(suffix)
    if compression:
        suffix = os.path.splitext(_NUMBER.sub("", stem))[1]
    return compression, _SUFFIXES.get(suffix)


def total_bytes(sources: Sequence[Source]) -> int:
    """Size of the corpus on disk."""
    return sum(source.bytes for source in sources)
