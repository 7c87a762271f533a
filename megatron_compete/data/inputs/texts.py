"""What a line, a paragraph or a row holds under the wanted keys."""

import json
from collections.abc import Sequence
from typing import Any

import orjson

from megatron_compete.data.bad_documents import BadDocument
from megatron_compete.data.inputs.lines import Raw
from megatron_compete.data.inputs.sources import Source

Text = str | list[str]
"""What a key may hold: a text, or a list of sentences that each keep their own length in the dataset."""

_NAMES: dict[type, str] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bytes: "bytes",
    bool: "a boolean",
    type(None): "null",
}


def texts_of(source: Source, raw: Raw, keys: Sequence[str]) -> dict[str, Text]:
    """The texts of one document by key; plain text is what the first key holds.

    Raises:
        BadDocument: the document is malformed, or a key is missing or no text.
    """
    if source.format == "jsonl":
        return parse_line(raw.content, keys)
    if source.format == "parquet":
        return {key: _checked(raw.content[key], key) for key in keys}
    return {keys[0]: _decode(raw.content, "text")}


def parse_line(raw: bytes, keys: Sequence[str]) -> dict[str, Text]:
    """The texts that one line of JSON holds under `keys`, exactly as Python's own `json` reads them.

    Raises:
        BadDocument: the line is malformed, or a key is missing or no text.
    """
    try:
        record = orjson.loads(raw)
    except ValueError:
        record = _slow_parse(raw)  # what orjson refuses and json takes (NaN, lone surrogates), or the exact fault
    if not isinstance(record, dict):
        raise BadDocument("not_object", f"{_name(record)} and not an object")
    return {key: _text_of(record, key) for key in keys}


def _slow_parse(raw: bytes) -> Any:
    text = _decode(raw, "line").removeprefix("\ufeff")  # of a file that was joined to another
    try:
        return json.loads(text, parse_int=float)  # of any length: int has a limit
    except json.JSONDecodeError as error:
        several = error.msg == "Extra data" and text[error.pos :].lstrip().startswith(("{", "["))
        way_out = ": several values on the line, which jq -c . puts on a line each" if several else ""
        raise BadDocument("not_json", f"not JSON ({error}){way_out}") from None
    except RecursionError:
        raise BadDocument("not_json", "not JSON that can be read: it is nested too deep") from None


def _decode(raw: bytes, what: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadDocument("not_utf8", f"not UTF-8 at byte {error.start + 1} of the {what}") from None


def _text_of(record: dict[str, Any], key: str) -> Text:
    if key not in record:
        raise BadDocument("missing_key", f"no key {key!r} (it has {', '.join(map(repr, record)) or 'none'})")
    return _checked(record[key], key)


def _checked(value: Any, key: str) -> Text:
    """`value` if it is a text or a list of texts."""
    if isinstance(value, BadDocument):  # the reader could not decode it
        raise BadDocument(value.kind, f"{key!r} is {value.reason}")
    for part in value if isinstance(value, list) else (value,):
        if not isinstance(part, str):
            raise BadDocument("not_text", f"{key!r} holds {_name(part)} and not a string")
        _refuse_surrogates(part, key)
    return value


def _name(value: object) -> str:
    return _NAMES.get(type(value), "a number")


def _refuse_surrogates(text: str, key: str) -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadDocument("lone_surrogate", f"{key!r} holds a lone surrogate at character {error.start + 1}") from None
