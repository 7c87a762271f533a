"""JSON Lines files as a stream of documents, and what happens to a line that holds none.

A corpus is one or more files with one JSON object a line. Blank lines are no documents and no errors. Whatever is
wrong with a line is a `BadLine` of one of the `KINDS`; `SkipLog` either stops the run there, naming file and line, or
counts it and lets the run go on.
"""

import glob
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from megatron_compete.errors import CompeteError

OnError = Literal["fail", "skip"]
ON_ERROR_CHOICES: tuple[str, ...] = get_args(OnError)

Text = str | list[str]
"""What a key may hold: a text, or a list of sentences that each keep their own length in the dataset."""

KINDS = {
    "not_utf8": "bytes that are not UTF-8",
    "not_json": "a line that is not JSON",
    "not_object": "JSON, but not an object",
    "missing_key": "an object without the key",
    "not_text": "a value that is neither a string nor a list of strings",
    "lone_surrogate": "an escape like \\ud800 without its other half, which is no character",
    "not_tokenizable": "a text that the tokenizer refuses, or gives ids beyond its vocabulary for",
}
_JSON_NAMES = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
_UTF8_BOM = b"\xef\xbb\xbf"


class BadLine(Exception):
    """A line that holds no usable document: `kind` is one of `KINDS`, `reason` says what exactly."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind = kind
        self.reason = reason


class CorpusLine(NamedTuple):
    """One line of a corpus as it lies in the file; `number` counts from 1."""

    file: str
    number: int
    raw: bytes


class Document(NamedTuple):
    """One document's text and where it came from; `number` counts lines from 1."""

    file: str
    number: int
    text: str


@dataclass
class SkipLog:
    """What to do with bad lines, and how many there were.

    Args:
        on_error: `fail` raises at the first one, `skip` counts.
    """

    on_error: OnError = "fail"

    def __post_init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, line: CorpusLine, bad: BadLine) -> None:
        """Take note of a bad line.

        Raises:
            CompeteError: with `on_error="fail"`; names file, line and reason.
        """
        where = f"{line.file}:{line.number}: {bad.reason}"
        if self.on_error == "fail":
            raise CompeteError(f"{where}: mend that line, or leave such lines out with --on-error skip")
        self.counts[bad.kind] += 1
        self._first.setdefault(bad.kind, where)

    @property
    def total(self) -> int:
        """Lines skipped so far."""
        return self.counts.total()

    def summary(self) -> str:
        """`skipped 3 lines (2 not_json, 1 missing_key)`."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.counts.items()))
        return f"skipped {self.total} lines" + (f" ({kinds})" if kinds else "")

    def report(self) -> list[str]:
        """A line for each kind that was met: how many, and the first of them."""
        return [f"skipped {self.counts[kind]} {kind}, the first at {first}" for kind, first in self._first.items()]


def expand_inputs(patterns: Sequence[str]) -> list[str]:
    """Files that `--input` names: each a file, or a glob pattern whose matches are taken in sorted order.

    Raises:
        CompeteError: nothing is there, a folder is named, a file is named twice, or all files are empty.
    """
    files: list[str] = []
    for pattern in patterns:
        files.extend(_expand(pattern))
    seen: set[str] = set()
    for file in files:
        if os.path.realpath(file) in seen:
            raise CompeteError(f"--input names {file} twice: its documents would count double; name it once")
        seen.add(os.path.realpath(file))
    if total_bytes(files) == 0:
        raise CompeteError(f"the corpus is empty: no bytes in {', '.join(files) or '--input'}")
    return files


def _expand(pattern: str) -> list[str]:
    if os.path.isdir(pattern):
        raise CompeteError(f"--input {pattern} is a folder: name its files, for example '{pattern}/*.jsonl'")
    if os.path.exists(pattern):
        return [pattern]
    matches = sorted(match for match in glob.glob(pattern, recursive=True) if os.path.isfile(match))
    if not matches:
        raise CompeteError(f"--input {pattern}: no such file, and no file matches it as a pattern")
    return matches


def total_bytes(files: Sequence[str]) -> int:
    """Size of the corpus on disk."""
    return sum(os.path.getsize(file) for file in files)


def read_lines(files: Sequence[str]) -> Iterator[CorpusLine]:
    """Lines of all files in order, unparsed; blank lines are left out but counted in the numbering."""
    for file in files:
        with open(file, "rb") as stream:
            for number, raw in enumerate(stream, start=1):
                if number == 1:
                    raw = raw.removeprefix(_UTF8_BOM)
                if not raw.isspace() and raw:
                    yield CorpusLine(file, number, raw)


def parse_line(raw: bytes, keys: Sequence[str]) -> dict[str, Text]:
    """The texts that one line holds under `keys`.

    Raises:
        BadLine: the line is malformed, or a key is missing or no text.
    """
    try:
        record = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadLine("not_utf8", f"not UTF-8 at byte {error.start + 1} of the line") from None
    except (ValueError, RecursionError) as error:
        raise BadLine("not_json", f"not JSON ({error})") from None
    if not isinstance(record, dict):
        raise BadLine("not_object", f"{_json_name(record)} and not an object")
    return {key: _text_of(record, key) for key in keys}


def _text_of(record: dict[str, object], key: str) -> Text:
    if key not in record:
        raise BadLine("missing_key", f"no key {key!r} (it has {', '.join(map(repr, record)) or 'none'})")
    value = record[key]
    parts = value if isinstance(value, list) else [value]
    for part in parts:
        if not isinstance(part, str):
            raise BadLine("not_text", f"{key!r} holds {_json_name(part)} and not a string")
        _refuse_surrogates(part, key)
    return value  # type: ignore[return-value]  # checked part by part


def _json_name(value: object) -> str:
    return _JSON_NAMES.get(type(value), "a number")


def _refuse_surrogates(text: str, key: str) -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadLine("lone_surrogate", f"{key!r} holds a lone surrogate at character {error.start + 1}") from None


def read_documents(files: Sequence[str], key: str, skips: SkipLog) -> Iterator[Document]:
    """Documents of all files in order; a list of sentences is joined into one text.

    Raises:
        CompeteError: at the first bad line, unless `skips` lets it pass.
    """
    for line in read_lines(files):
        try:
            text = parse_line(line.raw, [key])[key]
        except BadLine as bad:
            skips.add(line, bad)
            continue
        yield Document(line.file, line.number, text if isinstance(text, str) else "".join(text))


def no_documents(files: Sequence[str], key: str, skips: SkipLog) -> CompeteError:
    """The error to raise when a pass over `files` met no text under `key`."""
    detail = f": {'; '.join(skips.report())}" if skips.total else ""
    return CompeteError(f"no document with any text under {key!r} in {', '.join(files)}{detail}")
