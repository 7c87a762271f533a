"""The histogram of document lengths."""

from pathlib import Path

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.index_file import read_index
from megatron_compete.data.inspect import lengths as lengths_module
from megatron_compete.data.inspect.lengths import Lengths, histogram_lines, measure_lengths, write_figure
from tests.data.datasets import write_dataset

SIZES = [0, 0, 1, 2, 3, 4, 7, 8, 15, 16, 100, 127, 128]


@pytest.fixture(params=[4, 1 << 20])
def lengths(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lengths:
    monkeypatch.setattr(lengths_module, "CHUNK", request.param)
    documents = [[[5] * size] if size else [] for size in SIZES]
    return measure_lengths(read_index(write_dataset(tmp_path / "d", documents) + ".idx"))


def test_bins(lengths: Lengths) -> None:
    assert list(lengths.bins()) == [
        ("0", 2, 0),
        ("1", 1, 1),
        ("2-3", 2, 5),
        ("4-7", 2, 11),
        ("8-15", 2, 23),
        ("16-31", 1, 16),
        ("32-63", 0, 0),
        ("64-127", 2, 227),
        ("128-255", 1, 128),
    ]
    assert (lengths.shortest, lengths.longest, lengths.mean) == (0, 128, sum(SIZES) / len(SIZES))


def test_lines(lengths: Lengths) -> None:
    lines = histogram_lines(lengths)
    assert lines[0].split() == ["tokens", "documents", "of", "tokens"]
    assert lines[1].split() == ["0", "2", "0.0%", "#" * 40]
    assert lines[6].split() == ["16-31", "1", "3.9%", "#" * 20]
    assert lines[7].split() == ["32-63", "0", "0.0%"]


def test_figure(lengths: Lengths, tmp_path: Path) -> None:
    write_figure(lengths, "d", str(tmp_path / "f.png"))
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    for path in (str(tmp_path / "none" / "f.png"), str(tmp_path / "f.nosuchformat")):
        with pytest.raises(CompeteError, match="--figure"):
            write_figure(lengths, "d", path)
