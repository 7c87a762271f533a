"""JSON that is not one object a line: told by the beginning of a file, because line by line all of it would be bad."""

import json
import shlex
from typing import Any

from megatron_compete.common.errors import CompeteError

_DECOMPRESS = {"gz": "gzip -dc", "zst": "zstd -dc", "bz2": "bzip2 -dc", "xz": "xz -dc", "lz4": "lz4 -dc"}


def refuse_other_layout(path: str, compression: str | None, head: bytes, is_pipe: bool = False) -> None:
    """Look at the first bytes (decompressed) of what is to be JSON Lines.

    Raises:
        CompeteError: it is JSON, but no object a line; says what it is and how to convert it.
    """
    found = _other_layout(head.removeprefix(b"\xef\xbb\xbf").lstrip())
    if found is None:
        return
    what, command = found
    source = "FILE" if is_pipe else shlex.quote(path)
    if compression is not None:
        command, source = f"{_DECOMPRESS[compression]} {source} | {command}", ""
    elif command.startswith("tr "):
        source = f"< {source}"
    converted = f"{command} {source}".rstrip()
    raise CompeteError(f"--input {path} is {what} and not an object a line: convert it with {converted} > NEW.jsonl")


def _other_layout(text: bytes) -> tuple[str, str] | None:
    """What the file is, and the command that makes lines of it; None for JSON Lines and for what nobody knows."""
    if text.startswith(b"["):
        return ("a JSON array", "jq -c '.[]'") if text[1:].lstrip().startswith(b"{") else None
    if not text.startswith(b"{"):
        return None
    line, _, rest = text.partition(b"\n")
    if line.strip() == b"{" and rest.lstrip().startswith((b'"', b"}")):
        return "pretty-printed JSON", "jq -c ."
    whole = text.decode("utf-8", "ignore")
    end = _end_of_first_value(whole)
    if end is None:
        return None
    if "\n" in whole[:end]:
        return "pretty-printed JSON", "jq -c ."
    after = whole[end:].lstrip(" \t")
    if after.startswith("{"):
        return "JSON with several objects on a line", "jq -c ."
    if after.startswith(","):
        return "JSON with a comma after each object", r"sed 's/,[[:space:]]*$//'"
    if after.startswith("\r") and not after.startswith("\r\n") and after.strip():
        return "JSON with carriage returns between objects", r"tr '\r' '\n'"
    return None


def _end_of_first_value(text: str) -> int | None:
    decoder: Any = json.JSONDecoder(parse_int=float)  # of any length
    try:
        return int(decoder.raw_decode(text)[1])
    except (ValueError, RecursionError):
        return None
