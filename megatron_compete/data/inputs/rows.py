"""Rows of Parquet files, read by row groups and in small batches, of the wanted columns alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from megatron_compete.data.faults import BadDocument
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
        return [file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups)]


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
        """Rows of the row groups [start, end); None reads to the last one.

        Raises:
            BadDocument: the file is damaged, or lacks a column; after the row numbered `failed_at - 1`.
        """
        self.lines, self.at_end = 0, False
        with _opened(self.source) as file:
            count = file.metadata.num_row_groups
            groups = range(start, count if end is None else min(end, count))
            self.at_end = groups.stop >= count
            self._disk += self.source.bytes * len(groups) // max(1, count)
            self._check_columns(file.schema_arrow.names)
            for batch in file.iter_batches(BATCH_ROWS, list(groups), self.columns, use_threads=False):
                size = batch.nbytes // max(1, batch.num_rows)
                for row in batch.to_pylist():
                    self.lines += 1
                    yield Raw(self.lines, size, row)

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

    def _check_columns(self, names: Sequence[str]) -> None:
        for column in self.columns:
            if column not in names:
                raise BadDocument("missing_key", f"no column {column!r} (it has {', '.join(map(repr, names))})")


@contextmanager
def _opened(source: Source) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile`; what pyarrow raises for a damaged file becomes a `BadDocument`."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with open(source.path, "rb") as disk, ParquetFile(disk, buffer_size=BUFFER_BYTES) as file:
            yield file
    except pyarrow.ArrowException as error:
        raise BadDocument("damaged", f"the Parquet file is cut off or corrupt ({_first_line(error)})") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise BadDocument("damaged", f"the Parquet file is cut off or corrupt ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
