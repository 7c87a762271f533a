"""Byte ranges of text: every document in exactly one of them, whatever the cuts and the order."""

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from megatron_compete.data.bad_documents import BadDocument
from megatron_compete.data.inputs.lines import Raw, TextReader
from megatron_compete.data.inputs.shards import cut_stream
from megatron_compete.data.inputs.sources import make_source
from tests.data.inputs.files import COMPRESS

UTF8_BOM = b"\xef\xbb\xbf"
CONTENT = st.lists(st.sampled_from([b"a", b"bcd", b" ", b"\n", b"\n\n", b"\r\n", UTF8_BOM]), max_size=30)


def make(folder: Path, content: bytes, suffix: str, text: bool) -> Any:
    path = folder / f"c.{'txt' if text else 'jsonl'}{suffix}"
    path.write_bytes(COMPRESS[suffix](content))
    return make_source(str(path), "auto", "blank-line")


def lines_of(content: bytes) -> list[Raw]:
    """The oracle: lines that are not blank."""
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    ends = [b"\n"] * (len(lines) - 1) + [b""]
    whole = [line + end for line, end in zip(lines, ends)]
    return [Raw(number, 0, line) for number, line in enumerate(whole, start=1) if line.strip()]


def paragraphs_of(content: bytes) -> list[Raw]:
    """The oracle: runs of lines that are not blank."""
    found: list[Raw] = []
    for line in lines_of(content):
        last = found[-1] if found else None
        if last is not None and last.number + last.content.count(b"\n") == line.number:
            found[-1] = last._replace(content=last.content + line.content)
        else:
            found.append(line)
    return [one._replace(content=one.content.removesuffix(b"\n").removesuffix(b"\r")) for one in found]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(pieces=[UTF8_BOM, b"\n", b"a"], size=1, suffix="", text=True, order=random.Random(0))
@given(
    pieces=CONTENT,
    size=st.integers(1, 12),
    suffix=st.sampled_from(["", ".gz", ".zst", ".bz2", ".xz", ".lz4"]),
    text=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_ranges_hold_every_document_once(
    tmp_path: Path, pieces: list[bytes], size: int, suffix: str, text: bool, order: Any
) -> None:
    content = b"".join(pieces)
    source = make(tmp_path, content, suffix, text)
    starts = list(range(0, len(content) + 2 * size, size))
    order.shuffle(starts)
    reader, found, lines = TextReader(source), dict[int, list[Raw]](), dict[int, int]()
    for start in starts:
        found[start] = list(reader.read(start, start + size))
        lines[start] = reader.lines
    reader.close()
    documents: list[Raw] = []
    before = 0
    for start in sorted(found):
        base = 0 if reader.counts_from_start else before
        documents += [raw._replace(number=raw.number + base, size=0) for raw in found[start]]
        before += lines[start]
    assert documents == (paragraphs_of(content) if text else lines_of(content))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=CONTENT, size=st.integers(1, 12), text=st.booleans())
def test_standard_input_is_cut_between_documents(tmp_path: Path, pieces: list[bytes], size: int, text: bool) -> None:
    content = b"".join(piece for piece in pieces if piece != UTF8_BOM)  # a piece of its own, it is no byte order mark
    source = make(tmp_path, content, "", text)
    documents, before = [], 0
    with open(source.path, "rb") as stream:
        for given_piece in cut_stream(stream, source, size):
            read = TextReader(source, given_piece).read(0, None)
            documents += [raw._replace(number=raw.number + before, size=0) for raw in read]
            before += given_piece.count(b"\n")
    assert documents == (paragraphs_of(content) if text else lines_of(content))


def test_whole_files_are_documents(tmp_path: Path) -> None:
    for suffix, compress in COMPRESS.items():
        path = tmp_path / f"c.txt{suffix}"
        path.write_bytes(compress(b"\xef\xbb\xbfa\n\nb\n"))
        reader = TextReader(make_source(str(path), "auto", "file"))
        assert list(reader.read(0, None)) == [Raw(0, 8, b"a\n\nb\n")]


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz", ".lz4"])
def test_a_file_that_is_cut_off_belongs_to_one_range(tmp_path: Path, suffix: str) -> None:
    draw = random.Random(0)
    lines = [b'{"text": "%d"}\n' % draw.getrandbits(2000) for _ in range(4000)]  # more than a block of bzip2
    path = tmp_path / f"c.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](b"".join(lines))[:-150_000])
    source = make_source(str(path), "auto", "file")
    good: list[bytes] = []
    failed = []
    for start in range(0, sum(map(len, lines)), 200_000):
        reader = TextReader(source)
        try:
            good.extend(raw.content for raw in reader.read(start, start + 200_000))
        except BadDocument as bad:
            assert bad.kind == "damaged" and "cut off" in bad.reason
            assert reader.at_end
            failed.append(reader.failed_at)
    assert failed and good == lines[: failed[0] - 1]
    assert len(failed) == 1 and 0 < len(good) < len(lines)


def test_frames_and_members_after_one_another(tmp_path: Path) -> None:
    for suffix, compress in COMPRESS.items():
        path = tmp_path / f"c.jsonl{suffix}"
        path.write_bytes(compress(b"a\nb") + compress(b"c\n"))
        assert [raw.content for raw in TextReader(make_source(str(path), "auto", "file")).read(0, None)] == [
            b"a\n",
            b"bc\n",
        ]


def test_what_a_range_takes_from_the_disk_is_counted_once(tmp_path: Path) -> None:
    draw = random.Random(0)
    path = tmp_path / "c.jsonl.zst"
    path.write_bytes(COMPRESS[".zst"](b"".join(b"%d\n" % draw.getrandbits(2000) for _ in range(10_000))))
    taken = 0
    for first in (0, 1):  # two readers share the ranges
        reader = TextReader(make_source(str(path), "auto", "file"))
        for start in range(first * 1_000_000, 7_000_000, 2_000_000):
            for _ in reader.read(start, start + 1_000_000):
                pass
            taken += reader.disk_bytes()
        reader.close()
    assert 0.5 < taken / path.stat().st_size < 1.5
