"""Damaged Parquet files: what comes out is what went in, or there is a fault."""

import io
from collections.abc import Sequence
from pathlib import Path

import pyarrow
import pytest
from pyarrow.parquet import write_table

from tests.fuzz.corpora import reader_of_whole_files, text
from tests.fuzz.damage import fuzz

DOCUMENTS = [range(40), range(100, 150), range(200, 240)]


def parquet(numbers: Sequence[int], **options: object) -> bytes:
    sink = io.BytesIO()
    table = pyarrow.table({"id": list(numbers), "text": [text(number) for number in numbers]})
    write_table(table, sink, row_group_size=15, write_page_checksum=True, **options)
    return sink.getvalue()


def good() -> list[bytes]:
    options = [
        {"compression": "none", "use_dictionary": False},
        {"compression": "snappy", "data_page_version": "2.0"},
        {"compression": "zstd", "data_page_size": 100, "write_batch_size": 5},
    ]
    return [parquet(numbers, **option) for numbers, option in zip(DOCUMENTS, options)]


@pytest.mark.slow
def test_parquet(tmp_path: Path) -> None:
    read = reader_of_whole_files(tmp_path / "c.parquet", DOCUMENTS)
    for data in good():
        read(data)
    assert fuzz("parquet", good(), read, inputs=100, seconds=15) > 60


@pytest.mark.slow
@pytest.mark.parametrize("kind", range(3))
def test_pages_alone(kind: int, tmp_path: Path) -> None:
    """The index, without which nothing can be read, stays as it was."""
    whole = good()[kind]
    end = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    read = reader_of_whole_files(tmp_path / "c.parquet", DOCUMENTS)

    def read_with_index(pages: bytes) -> None:
        read(pages[:end].ljust(end, b"\0") + whole[end:])

    assert fuzz("parquet-pages", [whole[:end]], read_with_index, inputs=60, seconds=8) > 40
