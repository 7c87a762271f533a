"""What can be wrong with a document, and what becomes of it.

Whatever is wrong with a line, a row or a file is a `BadDocument` of one of the `KINDS`; `SkipLog` either stops the run
there, naming file and line, or counts it and lets the run go on.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from megatron_compete.common.errors import CompeteError

OnError = Literal["fail", "skip"]

KINDS = {
    "not_utf8": "bytes that are not UTF-8",
    "not_json": "a line that is not JSON",
    "not_object": "JSON, but not an object",
    "missing_key": "an object without the key, or a Parquet file without the column",
    "ambiguous_key": "a Parquet file with several columns of that name",
    "not_text": "a value that is neither a string nor a list of strings",
    "lone_surrogate": "an escape like \\ud800 without its other half, which is no character",
    "not_tokenizable": "a text that the tokenizer refuses, or gives ids beyond its vocabulary for",
    "empty": "a document without tokens (--empty-documents reject)",
    "damaged": "a compressed or Parquet file that is cut off or corrupt; what follows in it is left out",
}


class BadDocument(Exception):
    """No usable document: `kind` is one of `KINDS`, `reason` says what exactly."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind = kind
        self.reason = reason


@dataclass
class SkipLog:
    """What to do with bad documents, and how many there were.

    Args:
        on_error: `fail` raises at the first one, `skip` counts.
    """

    on_error: OnError = "fail"

    def __post_init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.unused: list[str] = []
        """Files of which nothing could be used."""
        self._first: dict[str, str] = {}

    def add(self, place: str, bad: BadDocument) -> None:
        """Take note of a bad document.

        Args:
            place: where it lies, as `place_of` writes it.
        Raises:
            CompeteError: with `on_error="fail"`; names place and reason.
        """
        if self.on_error == "fail":
            raise fatal(place, bad)
        self.count(bad.kind, f"{place}: {bad.reason}")

    def count(self, kind: str, first: str, times: int = 1) -> None:
        """Count `times` bad documents of a kind; `first` says where and what the first of them is."""
        self.counts[kind] += times
        self._first.setdefault(kind, first)

    @property
    def total(self) -> int:
        """Documents skipped so far."""
        return self.counts.total()

    def summary(self) -> str:
        """`skipped 3 documents (2 not_json, 1 missing_key) and the rest of 1 damaged file`."""
        damaged = self.counts["damaged"]
        kinds = ", ".join(
            f"{count} {kind}" for kind, count in sorted(self.counts.items()) if kind != "damaged" and count
        )
        return (
            f"skipped {self.total - damaged} documents"
            + (f" ({kinds})" if kinds else "")
            + (f" and the rest of {damaged} damaged file{'s' * (damaged > 1)}" if damaged else "")
        )

    def report(self) -> list[str]:
        """A line for each kind that was met: how many, and the first of them; and one for files left out whole."""
        lines = [f"skipped {self.counts[kind]} {kind}, the first at {first}" for kind, first in self._first.items()]
        if self.unused:
            some = ", ".join(self.unused[:5]) + (f" and {len(self.unused) - 5} more" if len(self.unused) > 5 else "")
            lines.append(f"nothing at all could be used of {len(self.unused)} input files: {some}")
        return lines


def place_of(file: str, number: int, unit: str = "line") -> str:
    """`file:12` for lines, as compilers write it, and `file:row 12` for rows; the file alone for 0."""
    if number == 0:
        return file
    return f"{file}:{number}" if unit == "line" else f"{file}:{unit} {number}"


def fatal(place: str, bad: BadDocument) -> CompeteError:
    """The error that ends a run at a bad document."""
    what = "the rest of the file" if bad.kind == "damaged" else "such documents"
    return CompeteError(f"{place}: {bad.reason}: fix that, or leave {what} out with --on-error skip")
