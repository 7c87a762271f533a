"""The manifest beside a dataset (`{prefix}.json`): which tokenizer and which corpus it was made of."""

import json
import os
from dataclasses import asdict, dataclass, fields
from typing import Any

from megatron_compete.errors import CompeteError

FORMAT = "megatron-compete dataset 1"


@dataclass(frozen=True)
class DatasetManifest:
    """What `tools/preprocess_data.py` writes down about one `.bin/.idx` pair; the fields are the JSON's keys."""

    tokenizer_type: str
    tokenizer_model: str | None
    """As it was given on the command line."""

    tokenizer_sha256: str | None
    """Over the files that decide about ids; None where there are none."""

    vocab_size: int
    append_eod: bool
    documents: int
    sequences: int
    """Sentences that have tokens; without sentence splitting, documents that have."""

    tokens: int
    inputs: list[dict[str, Any]]
    """`{"name": ..., "bytes": ...}` of every input file, in order."""

    skipped: dict[str, int]
    """Lines left out, by kind of fault (`corpus.KINDS`)."""

    def write(self, path: str) -> None:
        """Write as JSON; the caller stages the path."""
        with open(path, "w", encoding="utf-8") as stream:
            json.dump({"format": FORMAT} | asdict(self), stream, indent=2, ensure_ascii=False)
            stream.write("\n")


def manifest_path(prefix: str) -> str:
    """Where the manifest of the dataset at `prefix` lies."""
    return prefix + ".json"


def read_manifest(prefix: str) -> DatasetManifest | None:
    """The manifest of the dataset at `prefix` (without `.bin`); None when another tool made the dataset.

    Raises:
        CompeteError: there is one, but it cannot be read.
    """
    path = manifest_path(prefix)
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as stream:
            record = json.load(stream)
        if record.get("format") != FORMAT:
            raise ValueError(f"its format is {record.get('format')!r} and not {FORMAT!r}")
        return DatasetManifest(**{field.name: record[field.name] for field in fields(DatasetManifest)})
    except (ValueError, AttributeError, KeyError) as error:
        raise CompeteError(f"{path} is no manifest of this tool ({error}): preprocess again, or remove it") from None
