"""What a file's first bytes say."""

import io
import random
import tarfile
import zipfile
from pathlib import Path

import pyarrow
import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.inputs import InputOptions, find_sources
from megatron_compete.data.inputs.signatures import HEAD_BYTES, compression_of, refuse_foreign
from tests.data.inputs.files import COMPRESS, write_parquet

LINES = b'{"text": "na\xc3\xafve"}\n' * 4000


def test_compressions_by_content() -> None:
    for suffix, compress in COMPRESS.items():
        for content in (LINES, b""):
            for named in (None, "gz", "lz4"):
                found = compression_of(compress(content)[:HEAD_BYTES], named)
                assert found == (suffix[1:] or (None if content else named))


def test_what_is_neither_compressed_nor_text_is_what_its_name_says() -> None:
    damaged = b"\x1f\x8c" + random.Random(0).randbytes(1000)
    assert compression_of(damaged, "gz") == "gz" and compression_of(damaged, None) is None
    assert compression_of("é".encode() * HEAD_BYTES, "gz") is None
    assert compression_of(("x" + "é" * HEAD_BYTES).encode()[:HEAD_BYTES], "gz") is None  # cut within a character
    assert compression_of(b"BZhang wrote this", None) is None


def arrow() -> bytes:
    sink, table = io.BytesIO(), pyarrow.table({"text": ["a"]})
    with pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def tar() -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        member = tarfile.TarInfo("a.jsonl")
        member.size = len(LINES)
        archive.addfile(member, io.BytesIO(LINES))
    return sink.getvalue()


def zipped() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("a.jsonl", LINES)
    return sink.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
FOREIGN = [
    (arrow(), "an Arrow file"),
    (tar(), "a tar archive"),
    (zipped(), "a zip archive"),
    (LINES.decode().encode("utf-16"), "UTF-16: convert it with iconv"),
    (LFS, "a Git LFS pointer"),
    (b"<!DOCTYPE html>\n<html>Access denied</html>", "a web page"),
]


@pytest.mark.parametrize(("content", "words"), FOREIGN)
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_known_formats_that_are_not_read(content: bytes, words: str, suffix: str, tmp_path: Path) -> None:
    """Skipping bad lines must not lose such a file, so it does not matter here."""
    (tmp_path / f"a.jsonl{suffix}").write_bytes(COMPRESS[suffix](content))
    with pytest.raises(CompeteError, match=rf"a\.jsonl{suffix} is {words}"):
        find_sources([str(tmp_path)])


def test_pointers_in_place_of_parquet_and_doubly_compressed_files(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(LFS)
    with pytest.raises(CompeteError, match=r"a\.parquet is a Git LFS pointer"):
        find_sources([str(tmp_path / "a.parquet")])
    (tmp_path / "b.jsonl.gz").write_bytes(COMPRESS[".gz"](COMPRESS[".gz"](LINES)))
    with pytest.raises(CompeteError, match=r"b\.jsonl\.gz is compressed twice"):
        find_sources([str(tmp_path / "b.jsonl.gz")])


def test_plain_text_may_be_a_web_page() -> None:
    refuse_foreign("a.txt", b"<html>", is_text=True)
    with pytest.raises(CompeteError):
        refuse_foreign("a.txt", b"<html>", is_text=False)


def test_a_given_format_is_not_overruled(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.jsonl", {"text": ["a"]}, 1)
    with pytest.raises(CompeteError, match=r"--input-format jsonl, but .* is Parquet"):
        find_sources([str(path)], InputOptions("jsonl"))
    assert find_sources([str(path)], InputOptions("parquet"))[0].format == "parquet"
