"""The flags that say what is read, and the files they name."""

import argparse
import glob
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from megatron_compete.common.command_line import add_options, check_options, option, take_options
from megatron_compete.common.errors import CompeteError
from megatron_compete.data.inputs.sources import (
    STDIN,
    Format,
    Source,
    TextDocuments,
    known_form,
    make_source,
    misnamed,
    total_bytes,
)
from megatron_compete.data.inputs.streams import check_beginning

_LIST_MARK = "--input-list "
"""Goes before the name of a file list among the inputs, so that inputs keep their order and stay plain strings."""

_NAMED = 5
"""Files that a line about many of them names."""


@dataclass(frozen=True)
class InputOptions:
    """How input files are read.

    Raises:
        CompeteError: a value that cannot be used.
    """

    format: Literal["auto", Format] = option(
        "auto", "--input-format", help="auto goes by each file's content and suffix"
    )
    """`auto` goes by each file's content and suffix; otherwise one of `FORMATS` for all."""

    text_documents: TextDocuments = option(
        "file", help="a document of plain text: the whole file, or what lies between blank lines"
    )
    """What a document of a plain text file is."""

    def __post_init__(self) -> None:
        check_options(self)


def add_input_flags(group: argparse._ArgumentGroup) -> None:
    """`--input`, `--input-list`, `--input-format` and `--text-documents`."""
    none = argparse.SUPPRESS
    group.add_argument(
        "--input",
        nargs="+",
        metavar="PATH",
        default=none,
        help="files, folders or glob patterns of JSON Lines, Parquet (.parquet) or plain text (.txt), also .gz, .zst, "
        ".bz2, .xz and .lz4; named pipes; - is standard input",
    )
    group.add_argument("--input-list", metavar="FILE", default=none, help="a file that names an input a line")
    add_options(group, InputOptions)


def take_input_options(options: dict[str, Any]) -> tuple[tuple[str, ...], InputOptions]:
    """Take what `add_input_flags` added out of parsed options: the inputs and how to read them.

    Raises:
        CompeteError: no input is named.
    """
    inputs = list(options.pop("input", []))
    if "input_list" in options:
        inputs.append(_LIST_MARK + options.pop("input_list"))
    if not inputs:
        raise CompeteError("no input: name files, folders or patterns with --input, or a list with --input-list")
    return tuple(inputs), take_options(InputOptions, options)


def find_sources(inputs: Sequence[str], options: InputOptions | None = None) -> list[Source]:
    """Files that the inputs name, in their order; what a folder or a pattern holds is taken in sorted order.

    What is passed over, and what is read as something else than its name says, is said on stderr.

    Raises:
        CompeteError: nothing is there, a file is named twice, all files are empty, or one begins like a format that is
            not read.
    """
    options = options or InputOptions()
    paths = [path for pattern in inputs for path in _expand(pattern, options)]
    _refuse_doubles(paths)
    sources = [make_source(path, options.format, options.text_documents) for path in paths]
    _refuse_two_pipes(sources)
    if total_bytes(sources) == 0 and not any(source.is_pipe for source in sources):
        raise CompeteError(f"the corpus is empty: no bytes in {_some(paths) or '--input'}")
    for source in sources:
        if source.bytes:
            check_beginning(source)
    if differences := [difference for source in sources if (difference := misnamed(source, options.format))]:
        print(f"--input: {_some(differences)}", file=sys.stderr, flush=True)
    return sources


def _expand(pattern: str, options: InputOptions) -> list[str]:
    if pattern == STDIN:
        return [STDIN]
    if pattern.startswith(_LIST_MARK):
        return [path for line in _read_list(pattern.removeprefix(_LIST_MARK)) for path in _expand(line, options)]
    if os.path.isdir(pattern):
        return _in_folder(pattern, options)
    if os.path.exists(pattern):
        return [pattern]
    matches = sorted(glob.glob(pattern, recursive=True))
    files = [match for match in matches if _is_file(match)]
    if not files:
        raise CompeteError(f"--input {pattern}: no such file, and no file matches it as a pattern")
    _say_passed_over(pattern, files, sorted(set(matches) - set(files)), "no file")
    return files


def _read_list(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig") as stream:
            lines = [line.strip() for line in stream]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise CompeteError(f"--input-list {path}: {reason}") from None
    return [line for line in lines if line]


def _in_folder(folder: str, options: InputOptions) -> list[str]:
    """Files below `folder` whose names tell their format; with a format given, files of that format or of none.

    Raises:
        CompeteError: there are none.
    """
    paths = list(_walk(folder))
    found = [path for path in paths if _is_wanted(path, options.format) and _is_file(path)]
    if not found:
        raise CompeteError(
            f"--input {folder}: no .jsonl, .json, .parquet or .txt file (or .gz, .zst, .bz2, .xz, .lz4 of them) is "
            f"below it; name other files with a pattern like '{folder}/*'"
        )
    what = "of no known format by its name" if options.format == "auto" else f"not {options.format} by its name"
    _say_passed_over(folder, found, sorted(set(paths) - set(found)), what)
    return found


def _is_file(path: str) -> bool:
    """Whether this is a file, or a link to one that is gone, which is for whoever opens it to say."""
    return os.path.isfile(path) or not os.path.exists(path)


def _say_passed_over(where: str, taken: Sequence[str], others: Sequence[str], why: str) -> None:
    if others:
        count = f"{len(others)} of {len(taken) + len(others)} passed over"
        print(f"--input {where}: {count}, each {why}: {_some(others)}", file=sys.stderr, flush=True)


def _some(things: Sequence[str]) -> str:
    return ", ".join(things[:_NAMED]) + (f" and {len(things) - _NAMED} more" if len(things) > _NAMED else "")


def _walk(folder: str) -> Iterator[str]:
    for below, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(below, name) for name in sorted(names) if not name.startswith("."))


def _is_wanted(path: str, wanted: str) -> bool:
    known = known_form(path)[1]
    return known is not None and wanted in ("auto", known)


def _refuse_two_pipes(sources: Sequence[Source]) -> None:
    pipes = [source.path for source in sources if source.is_pipe]
    if len(pipes) > 1:
        raise CompeteError(f"--input names several pipes ({_some(pipes)}): join them with cat, one can be read")


def _refuse_doubles(paths: Sequence[str]) -> None:
    seen: set[str] = set()
    for path in paths:
        real = path if path == STDIN else os.path.realpath(path)
        if real in seen:
            raise CompeteError(f"--input names {path} twice: its documents would count double; name it once")
        seen.add(real)
