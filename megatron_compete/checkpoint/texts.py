"""Texts to check a conversion on: documents of a JSON Lines file, or a plain text file."""

import json
from pathlib import Path

from megatron_compete.common.errors import CompeteError

JSON_LINES = (".jsonl", ".json")


def read_documents(path: Path, flag: str) -> list[str]:
    """The "text" of every line of a `.jsonl`, or a plain text file as one document; what is no UTF-8 is replaced.

    Args:
        flag: that names the file, for errors.
    Raises:
        CompeteError: no such file, a line without a text, or no text at all, on which every check would pass.
    """
    try:
        content = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise CompeteError(f"{flag} {path} cannot be read: {error.strerror}") from error
    documents = [content]
    if path.suffix in JSON_LINES:
        lines = enumerate(content.split("\n"), 1)
        documents = [_text_of(line, f"{flag} {path} line {number}") for number, line in lines if line.strip()]
    if not any(document.strip() for document in documents):
        raise CompeteError(f"{flag} {path} holds no text, so there is nothing to compare: give a file with some")
    return documents


def _text_of(line: str, where: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError, RecursionError):
        text = None
    if not isinstance(text, str):
        raise CompeteError(f'{where} is not a JSON object with a "text"')
    return text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates of JSON have no encoding
