"""Lines and paragraphs of byte ranges of a text file, whoever reads the ranges and in whatever order.

A line belongs to the range that its first byte lies in. A paragraph (a document between blank lines) belongs to the
range that its first line's first byte lies in. Ranges count decompressed bytes; a plain file is entered anywhere, a
compressed one is read forward, and again from its beginning for a range before the last one.
"""

import io
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from megatron_compete.data.bad_documents import BadDocument
from megatron_compete.data.inputs.sources import Source
from megatron_compete.data.inputs.streams import BUFFER_BYTES, InputStream

_UTF8_BOM = b"\xef\xbb\xbf"


class Raw(NamedTuple):
    """A document as it lies in its file."""

    number: int
    """Line or row, from 1; 0 if the file is the document."""

    size: int
    """Bytes of it."""

    content: Any
    """Bytes of a line or text; values by column of a Parquet row."""


class TextReader:
    """Reads byte ranges of one JSON Lines or plain text source; quickest in ascending order.

    Numbers of lines are those of the file if it is read forward (`counts_from_start`), and otherwise count from the
    first line of the range, because nobody has read what lies before it.

    Args:
        source: what to read.
        given: bytes to read in place of the source's file (a block of a pipe).
    """

    def __init__(self, source: Source, given: bytes | None = None) -> None:
        self.source = source
        self.counts_from_start = given is None and (source.compression is not None or source.is_pipe)
        self.lines = 0
        """Lines that belong to the last range."""
        self.at_end = False
        """Whether the last range reached the end of the file, or its damage."""
        self._stream: InputStream | None = None
        self._text: BinaryIO | None = None if given is None else io.BytesIO(given)
        self._position = 0  # between ranges always the beginning of a line
        self._line_start = 0  # of the line that was read last
        self._number = 0  # lines before the position
        self._after_blank = True  # a paragraph may begin at the position
        self._next_start: int | None = 0  # ranges from here on lie ahead of the position; None: nobody knows
        self._disk_before = 0

    def read(self, start: int, end: int | None) -> Iterator[Raw]:
        """Documents of the range [start, end); None reads to the end of the file.

        Raises:
            BadDocument: the file is damaged within this range, in the line numbered `failed_at`.
        """
        self.lines, self.at_end = 0, False
        try:
            self._go_to(start)
        except BadDocument:  # it belongs to a range before this one, which reports it
            self.at_end, self._next_start = True, None
            return
        self._next_start = None  # until this range has been read to its end
        try:
            yield from self._documents(end)
        except BadDocument:
            self.at_end = True
            raise
        self._next_start = end

    @property
    def failed_at(self) -> int:
        """Number of the line that could not be read."""
        return 0 if self.source.is_one_document else self._number + 1

    def disk_bytes(self) -> int:
        """Bytes of the file on disk taken in since the last call."""
        if self._stream is None:
            return 0
        before, self._disk_before = self._disk_before, self._stream.disk_position()
        return max(0, self._disk_before - before)

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()
            self._stream = self._text = None

    def _documents(self, end: int | None) -> Iterator[Raw]:
        if self.source.is_one_document:
            return self._whole()
        return self._paragraphs(end) if self.source.format == "text" else self._lines(end)

    def _lines(self, end: int | None) -> Iterator[Raw]:
        while raw := self._next_line(end):
            self.lines += 1
            if not raw.isspace():
                yield Raw(self._number, len(raw), raw)

    def _paragraphs(self, end: int | None) -> Iterator[Raw]:
        document: list[bytes] = []
        first = 0
        while raw := self._next_line(None if document else end):
            self.lines += end is None or self._line_start < end
            blank = raw.isspace()
            if document and blank:
                yield _join(first, document)
                document = []
            elif document:
                document.append(raw)
            elif self._after_blank and not blank:
                document, first = [raw], self._number
            self._after_blank = blank
        if document:
            yield _join(first, document)

    def _whole(self) -> Iterator[Raw]:
        assert self._text is not None
        raw = self._text.read()
        self.at_end = True
        yield Raw(0, len(raw), raw.removeprefix(_UTF8_BOM))

    def _next_line(self, end: int | None) -> bytes:
        """The line at the position, without the file's byte order mark; nothing at the end of file or range."""
        assert self._text is not None
        if end is not None and self._position >= end:
            return b""
        raw = self._text.readline()
        if not raw:
            self.at_end = True
            return b""
        self._line_start, self._position = self._position, self._position + len(raw)
        self._number += 1
        return raw if self._line_start else raw.removeprefix(_UTF8_BOM) or b"\n"

    def _go_to(self, start: int) -> None:
        """Put the position at the first line that begins at `start` or later."""
        if self._text is None or (self.counts_from_start and (self._next_start is None or start < self._next_start)):
            self._open()
        if not self.counts_from_start:
            self._seek(start)
        elif start > self._position:
            self._skip_to(start)
            self.disk_bytes()  # of ranges that others read

    def _open(self) -> None:
        self.close()
        self._stream = InputStream(self.source)
        self._text = self._stream.text
        self._position = self._number = self._disk_before = 0
        self._after_blank = True

    def _seek(self, start: int) -> None:
        assert self._text is not None
        self._position = self._text.seek(max(0, start - 1))
        if start > 0:
            self._finish_line()
        self._number = 0
        self._disk_before = start if self._stream else 0
        if self.source.format == "text" and not self.source.is_one_document:
            self._after_blank = _is_blank_before(self._text, self._position)
            self._text.seek(self._position)

    def _skip_to(self, start: int) -> None:
        assert self._text is not None
        if self.source.format == "text":
            while self._position < start and (raw := self._next_line(None)):
                self._after_blank = raw.isspace()
            return
        while self._position < start - 1:
            block = self._text.read(min(BUFFER_BYTES, start - 1 - self._position))
            if not block:
                return
            self._position += len(block)
            self._number += block.count(b"\n")
        if self._position == start - 1:
            self._number += self._finish_line()

    def _finish_line(self) -> bool:
        """Read on to the end of the line at the position, without holding it; whether there was one."""
        assert self._text is not None
        while block := self._text.readline(BUFFER_BYTES):
            self._position += len(block)
            if block.endswith(b"\n"):
                return True
        return False


def _join(first: int, lines: list[bytes]) -> Raw:
    """A paragraph, without the newline that ends its last line."""
    content = b"".join(lines)
    return Raw(first, len(content), content.removesuffix(b"\n").removesuffix(b"\r"))


def _is_blank_before(text: BinaryIO, position: int) -> bool:
    """Whether the line that ends right before `position` is blank, or there is none."""
    end = position - 1
    while end > 0:
        start = max(0, end - BUFFER_BYTES // 16)
        text.seek(start)
        block = text.read(end - start)
        if start == 0:
            block = block.removeprefix(_UTF8_BOM)
        newline = block.rfind(b"\n")
        if block[newline + 1 :].strip():
            return False
        if newline >= 0:
            return True
        end = start
    return True
