"""Rows of Parquet files, read by row groups and in small batches, of the wanted columns alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from megatron_compete.data.bad_documents import BadDocument
from megatron_compete.data.inputs.lines import Raw
from megatron_compete.data.inputs.sources import Source
from megatron_compete.data.inputs.streams import BUFFER_BYTES

BATCH_ROWS = 128
"""Rows in memory at a time."""


def row_group_bytes(source: Source) -> list[int]:
    """Uncompressed size of each row group.

    Raises:
        BadDocument: the file's index cannot be read.
    """
    with _opened(source) as file:
        return [file.metadata.row_group(index).total_byte_size for index in range(file.metadata.num_row_groups)]


def row_group_rows(source: Source) -> list[int]:
    """Rows of each row group.

    Raises:
        BadDocument: the file's index cannot be read.
    """
    with _opened(source) as file:
        return _rows_of_groups(file)


class RowReader:
    """Reads ranges of row groups of one Parquet source; rows are numbered from the first of the range."""

    counts_from_start = False

    def __init__(self, source: Source, columns: Sequence[str]) -> None:
        self.source = source
        self.columns = list(columns)
        self.lines = 0
        """Rows of the last range."""
        self.at_end = False
        self._disk = 0

    def read(self, start: int, end: int | None) -> Iterator[Raw]:
        """Rows of the row groups [start, end); None reads to the last one. A value that is not UTF-8 is a `BadDocument`.

        Raises:
            BadDocument: the file is damaged, or lacks a column or has it twice; after the row numbered `failed_at - 1`.
        """
        self.lines, self.at_end = 0, False
        with _opened(self.source) as file:
            count = file.metadata.num_row_groups
            groups = range(start, count if end is None else min(end, count))
            self.at_end = groups.stop >= count
            self._disk += self.source.bytes * len(groups) // max(1, count)
            self._check_columns(file.schema_arrow.names)
            rows = _rows_of_groups(file)
            for group in groups:
                yield from self._read_group(file, group, rows[group])

    def _read_group(self, file: Any, group: int, rows: int) -> Iterator[Raw]:
        before = self.lines
        for batch in file.iter_batches(BATCH_ROWS, [group], self.columns, use_threads=False):
            size = batch.nbytes // max(1, batch.num_rows)
            values = [_values(batch.column(column)) for column in self.columns]
            for row in zip(*values, strict=True):
                self.lines += 1
                yield Raw(self.lines, size, dict(zip(self.columns, row)))
        found = self.lines - before
        if found != rows:  # pyarrow takes what the pages hold, and does not compare
            raise _damaged(f"row group {group} holds {found} rows where the file's index says {rows}")

    @property
    def failed_at(self) -> int:
        """Number of the row that could not be read."""
        return self.lines + 1 if self.lines else 0

    def disk_bytes(self) -> int:
        """Bytes on disk of the row groups begun since the last call."""
        disk, self._disk = self._disk, 0
        return disk

    def close(self) -> None:
        """Nothing stays open between ranges."""

    def _check_columns(self, names: list[str]) -> None:
        for column in self.columns:
            if column not in names:
                raise BadDocument("missing_key", f"no column {column!r} (it has {', '.join(map(repr, names))})")
            if names.count(column) > 1:
                raise BadDocument("ambiguous_key", f"{names.count(column)} columns of the name {column!r}")


def _rows_of_groups(file: Any) -> list[int]:
    """Rows of each row group, which are all the file says it has."""
    rows = [file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups)]
    if sum(rows) != file.metadata.num_rows:
        raise _damaged(f"its row groups hold {sum(rows)} rows where its index says {file.metadata.num_rows}")
    return rows


def _values(column: Any) -> list[Any]:
    """Values of a column as Python has them; those that are not UTF-8 each become the `BadDocument` that they are."""
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        return [_value(cell) for cell in column]
    return values


def _value(cell: Any) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError as error:
        return BadDocument("not_utf8", f"not UTF-8 at byte {error.start + 1} of the value")


@contextmanager
def _opened(source: Source) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile`; what pyarrow raises for a damaged file becomes a `BadDocument`."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with (
            open(source.path, "rb") as disk,
            ParquetFile(disk, buffer_size=BUFFER_BYTES, page_checksum_verification=True) as file,
        ):
            yield file
    except pyarrow.ArrowException as error:
        raise _damaged(_first_line(error)) from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise _damaged(_first_line(error)) from None


def _damaged(reason: str) -> BadDocument:
    return BadDocument("damaged", f"the Parquet file is cut off or corrupt ({reason})")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
