"""Input files of every form for the tests."""

import bz2
import gzip
import json
import lzma
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lz4.frame
import pyarrow
import zstandard
from pyarrow.parquet import write_table

COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".xz": lzma.compress,
    ".lz4": lz4.frame.compress,
}


def write_jsonl(path: Path, records: Sequence[object]) -> Path:
    """JSON Lines, compressed as the suffix says; a bytes record is written as it is."""
    lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
    path.write_bytes(COMPRESS[path.suffix if path.suffix in COMPRESS else ""](b"".join(line + b"\n" for line in lines)))
    return path


def write_parquet(path: Path, columns: dict[str, Sequence[Any]], rows_in_group: int) -> Path:
    """A Parquet file with row groups of that many rows."""
    write_table(pyarrow.table({name: list(values) for name, values in columns.items()}), path, rows_in_group)
    return path
