"""Decompression: what follows the first frame is read or is damage, never left out without a word."""

from pathlib import Path

import pytest

from megatron_compete.data.bad_documents import BadDocument
from megatron_compete.data.inputs.sources import Source
from megatron_compete.data.inputs.streams import InputStream
from tests.data.inputs.files import COMPRESS

SUFFIXES = [suffix for suffix in COMPRESS if suffix]


def read(folder: Path, suffix: str, content: bytes) -> bytes:
    path = folder / f"c{suffix}"
    path.write_bytes(content)
    stream = InputStream(Source(str(path), "jsonl", suffix[1:], len(content)))
    try:
        return stream.text.read()
    finally:
        stream.close()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damage_after_the_first_frame(suffix: str, tmp_path: Path) -> None:
    first, second = COMPRESS[suffix](b"first\n"), COMPRESS[suffix](b"second\n")
    assert read(tmp_path, suffix, first + second) == b"first\nsecond\n"
    for rest in (b"x" + second[1:], b"garbage", second[:-3], b"\0\0\0\1"):
        with pytest.raises(BadDocument, match=rf"the \{suffix} file is cut off or corrupt here"):
            read(tmp_path, suffix, first + rest)


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_zeros_after_a_frame_are_padding(suffix: str, tmp_path: Path) -> None:
    """Tapes and some downloads pad with them, and gzip and xz take it."""
    frame = COMPRESS[suffix](b"a\n")
    assert read(tmp_path, suffix, frame + b"\0" * 200_000 + frame + b"\0" * 512) == b"a\na\n"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_without_a_frame(suffix: str, tmp_path: Path) -> None:
    assert read(tmp_path, suffix, COMPRESS[suffix](b"")) == b""
    for content, words in ((b"", "it is empty"), (COMPRESS[suffix](b"a")[:3], "not complete")):
        with pytest.raises(BadDocument, match=words):
            read(tmp_path, suffix, content)


def test_a_zstd_file_that_begins_with_a_frame_to_skip(tmp_path: Path) -> None:
    skipped = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"  # as pzstd writes one
    assert read(tmp_path, ".zst", skipped + COMPRESS[".zst"](b"a\n")) == b"a\n"
