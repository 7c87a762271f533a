"""The manifest beside a dataset (`{prefix}.json`): which tokenizer and which corpus it was made of."""

import json
import os
from dataclasses import asdict, dataclass, field, fields
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
    """Documents left out, by kind of fault (`faults.KINDS`)."""

    empty_documents: int = 0
    """Documents without tokens that are in the dataset."""

    engine: dict[str, Any] | None = None
    """What tokenised, how it was proven, and how many texts were compared meanwhile (`engines.EngineChoice`)."""

    tokenizer_options: dict[str, Any] = field(default_factory=dict)
    """Other flags of the tokenizer that decide about ids, where they are not at their defaults."""

    job: str | None = None
    """Names the input's state and the flags: the same command finds that its work is done."""

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
        known = {one.name: record[one.name] for one in fields(DatasetManifest) if one.name in record}
        return DatasetManifest(**known)
    except (ValueError, AttributeError, TypeError) as error:
        raise CompeteError(f"{path} is no manifest of this tool ({error}): preprocess again, or remove it") from None
