"""A corpus of any size in several forms: the standard library's sources, repeated with variation."""

import bz2
import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path

from megatron_compete.data.stdlib_corpus import write_stdlib_corpus

FORMS = ("jsonl", "jsonl.gz", "jsonl.zst", "jsonl.bz2", "parquet")
ROW_GROUP_BYTES = 4_000_000


def documents(folder: Path, size: int, seed: int = 0) -> Iterator[str]:
    """About `size` bytes of documents: modules cut anew in every round, from 1 line to 1000.

    Args:
        folder: where the standard library's corpus is written once.
    """
    source = write_stdlib_corpus(str(folder / "stdlib")).train_path
    with open(source, encoding="utf-8") as stream:
        modules = [json.loads(line)["text"].splitlines(keepends=True) for line in stream]
    draw, left = random.Random(seed), size
    while left > 0:
        draw.shuffle(modules)
        for lines in modules:
            start = 0
            while start < len(lines) and left > 0:
                length = int(10 ** draw.uniform(0, 3))
                text = "".join(lines[start : start + length])
                yield text
                left -= len(text)
                start += length


def write_corpus(folder: Path, size: int, forms: tuple[str, ...] = ("jsonl",), seed: int = 0) -> dict[str, Path]:
    """Write the same documents in each form; the files by form."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = folder / "corpus.jsonl"
    with open(plain, "w", encoding="utf-8", newline="\n") as stream:
        for text in documents(folder, size, seed):
            stream.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return {form: _convert(plain, form) for form in forms}


def _convert(plain: Path, form: str) -> Path:
    path = plain.with_name(f"corpus.{form}")
    if form == "parquet":
        _write_parquet(plain, path)
    elif form != "jsonl":
        with open(plain, "rb") as source, _open_compressed(path, form) as target:
            while block := source.read(1 << 20):
                target.write(block)
    return path


def _open_compressed(path: Path, form: str):  # type: ignore[no-untyped-def]
    import zstandard

    openers = {"jsonl.gz": gzip.open, "jsonl.bz2": bz2.open, "jsonl.zst": zstandard.open}
    return openers[form](path, "wb")


def _write_parquet(plain: Path, path: Path) -> None:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    schema = pyarrow.schema([("text", pyarrow.string())])
    with open(plain, encoding="utf-8") as source, ParquetWriter(path, schema) as writer:
        while lines := source.readlines(ROW_GROUP_BYTES):
            texts = [json.loads(line)["text"] for line in lines]
            writer.write_table(pyarrow.table({"text": texts}, schema=schema))
