"""Rows of Parquet files, and files that contradict themselves."""

from pathlib import Path

import pyarrow
import pytest
from pyarrow.parquet import write_table

from megatron_compete.data.bad_documents import BadDocument
from megatron_compete.data.inputs.lines import Raw
from megatron_compete.data.inputs.rows import RowReader
from megatron_compete.data.inputs.sources import Source
from tests.data.inputs.files import write_parquet


def read(path: Path, *columns: str) -> list[Raw]:
    return list(RowReader(Source(str(path), "parquet", None, path.stat().st_size), columns or ["text"]).read(0, None))


def test_a_value_that_is_not_utf8_is_a_fault_of_its_row(tmp_path: Path) -> None:
    ends, content = pyarrow.array([0, 3, 6, 9], pyarrow.int32()).buffers()[1], pyarrow.py_buffer(b"abcd\xff\xfexyz")
    texts = pyarrow.StringArray.from_buffers(3, ends, content)
    write_table(pyarrow.table({"text": texts, "list": pyarrow.array([["a"], ["b", "c"], []])}), tmp_path / "a.parquet")
    rows = read(tmp_path / "a.parquet", "list", "text")
    assert [row.content["list"] for row in rows] == [["a"], ["b", "c"], []]
    assert (rows[0].content["text"], rows[2].content["text"]) == ("abc", "xyz")
    assert isinstance(rows[1].content["text"], BadDocument) and "byte 2 of the value" in rows[1].content["text"].reason


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pyarrow.table(
        [pyarrow.array(["a"]), pyarrow.array(["b"]), pyarrow.array(["c"])], names=["text", "text", "x"]
    )
    write_table(table, tmp_path / "a.parquet")
    with pytest.raises(BadDocument, match="2 columns of the name 'text'") as caught:
        read(tmp_path / "a.parquet")
    assert caught.value.kind == "ambiguous_key"
    assert [row.content for row in read(tmp_path / "a.parquet", "x")] == [{"x": "c"}]


def test_checksums_of_pages_are_compared(tmp_path: Path) -> None:
    path, texts = tmp_path / "a.parquet", [f"row {number} with some text in it" for number in range(60)]
    options = {"write_page_checksum": True, "compression": "none", "use_dictionary": False}
    write_table(pyarrow.table({"text": texts}), path, **options)
    assert [row.content["text"] for row in read(path)] == texts
    path.write_bytes(path.read_bytes().replace(b"row 30 with", b"row 77 with"))
    with pytest.raises(BadDocument, match="CRC checksum") as caught:
        read(path)
    assert caught.value.kind == "damaged"


def test_a_group_with_fewer_rows_than_the_index_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyarrow.parquet import ParquetFile

    path = write_parquet(tmp_path / "a.parquet", {"text": ["a", "b", "c", "d"]}, 2)
    reader = RowReader(Source(str(path), "parquet", None, 1), ["text"])
    whole = ParquetFile.iter_batches
    monkeypatch.setattr(ParquetFile, "iter_batches", lambda *args, **kw: (batch[:1] for batch in whole(*args, **kw)))
    found = []
    with pytest.raises(BadDocument, match="row group 0 holds 1 rows where the file's index says 2"):
        found.extend(reader.read(0, None))
    assert reader.failed_at == 2
