"""Line numbers of a range are those of its file."""

from pathlib import Path

import pytest

from megatron_compete.data.inputs import find_sources
from megatron_compete.data.inputs.shards import SourceRange
from megatron_compete.data.preprocessing.line_numbers import counts_from_range, lines_before
from tests.data.inputs.files import write_jsonl, write_parquet

RECORDS = [{"text": "x" * number} for number in range(6)]


def test_lines_before_a_piece_are_counted(tmp_path: Path) -> None:
    (source,) = find_sources([str(write_jsonl(tmp_path / "a.jsonl", RECORDS))])
    content = Path(source.path).read_bytes()
    starts = [0, *(at + 1 for at, byte in enumerate(content[:-1]) if byte == ord("\n"))]
    assert counts_from_range(source)
    for line, start in enumerate(starts):
        assert lines_before(source, SourceRange(0, start, None)) == line
        # A range that begins within a line leaves that line to the range before.
        assert lines_before(source, SourceRange(0, start + 1, None)) == line + 1


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_is_counted_from_its_beginning(tmp_path: Path, suffix: str) -> None:
    (source,) = find_sources([str(write_jsonl(tmp_path / f"a.jsonl{suffix}", RECORDS))])
    assert not counts_from_range(source)
    assert lines_before(source, SourceRange(0, 20, None)) == 0


def test_rows_before_a_row_group_are_counted(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"text": list("abcdefg")}, rows_in_group=3)
    (source,) = find_sources([str(path)])
    assert [lines_before(source, SourceRange(0, group, None)) for group in range(3)] == [0, 3, 6]
