"""Damaged archives of JSON Lines: what comes out is what went in, or there is a fault."""

import bz2
import gzip
import lzma
from pathlib import Path

import lz4.frame
import pytest
import zstandard

from megatron_compete.data.inputs import streams
from tests.fuzz.corpora import lines, reader_of_whole_files
from tests.fuzz.damage import fuzz

DOCUMENTS = [range(40), range(100, 130)]
COMPRESS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    # Checksums of the content, without which nobody can know what is damaged.
    "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    "lz4": lambda content: lz4.frame.compress(content, content_checksum=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("compression", COMPRESS)
def test_archives(compression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BUFFER_BYTES", 512)  # so that damage lies behind what has been handed out
    good = [COMPRESS[compression](lines(numbers)) for numbers in DOCUMENTS]
    read = reader_of_whole_files(tmp_path / f"c.jsonl.{compression}", DOCUMENTS)
    for data in good:
        read(data)
    assert fuzz(f"archives-{compression}", good, read, inputs=50, seconds=8) > 30
