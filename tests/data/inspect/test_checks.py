"""Every kind of damage is found, and named in one line."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from megatron_compete.data import index_file
from megatron_compete.data.index_file import HEADER_BYTES
from megatron_compete.data.inspect import checks
from megatron_compete.data.inspect.checks import Inspection, Vocabulary, inspect
from tests.data.datasets import random_documents, write_dataset, write_manifest

UNKNOWN = Vocabulary(None, None)


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    """20 documents with a manifest."""
    prefix = write_dataset(tmp_path / "d", random_documents(20))
    write_manifest(prefix)
    return prefix


@pytest.fixture(autouse=True, params=[3, 1 << 20])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks smaller than the tables, and larger."""
    for module in (index_file, checks):
        monkeypatch.setattr(module, "CHUNK", request.param)


def damage(prefix: str, vocabulary: Vocabulary = UNKNOWN) -> list[str]:
    return inspect(prefix, vocabulary).damage


def change(path: str, at: int, form: str, value: int) -> None:
    raw = bytearray(Path(path).read_bytes())
    struct.pack_into(form, raw, at, value)
    Path(path).write_bytes(raw)


def test_a_whole_dataset(prefix: str) -> None:
    inspection = inspect(prefix, UNKNOWN)
    assert inspection.damage == []
    assert inspection.index is not None and inspection.index.documents == 20
    assert any(note.endswith(" of 1000") for note in inspection.notes)
    assert "every document with tokens ends with token 2" in inspection.notes


def test_missing_files(prefix: str, tmp_path: Path) -> None:
    Path(prefix + ".bin").unlink()
    assert damage(prefix) == [f"{prefix}.bin is missing"]
    assert damage(str(tmp_path / "x")) == [f"{tmp_path}/x.bin is missing", f"{tmp_path}/x.idx is missing"]


def test_files_that_do_not_fit(prefix: str) -> None:
    with open(prefix + ".bin", "ab") as stream:
        stream.write(b"\x00\x00")
    assert [line.startswith(f"{prefix}.bin has ") for line in damage(prefix)] == [True]


@pytest.mark.parametrize(
    ("place", "form", "value", "words"),
    [
        (lambda s: HEADER_BYTES + 4 * 5, "<i", -1, "its table of lengths gives sequence 5 -1 tokens"),
        (lambda s: HEADER_BYTES + 4 * s + 8 * 7, "<q", 1, "its table of pointers has sequence 7 begin at byte 1"),
        (lambda s: HEADER_BYTES + 12 * s, "<q", 2, "its table of documents begins at sequence 2"),
        (lambda s: HEADER_BYTES + 12 * s + 8 * 9, "<q", 0, "its table of documents has document 8 end at sequence 0"),
        (lambda s: HEADER_BYTES + 12 * s + 8 * 20, "<q", 1000, "its table of documents ends at sequence 1000 of"),
        (lambda s: 17, "<B", 77, "dtype code is 77"),
    ],
)
def test_tables(place: Callable[[int], int], form: str, value: int, words: str, prefix: str) -> None:
    sequences = struct.unpack("<Q", Path(prefix + ".idx").read_bytes()[18:26])[0]
    change(prefix + ".idx", place(sequences), form, value)
    found = damage(prefix)
    assert len(found) == 1 and found[0].startswith(f"{prefix}.idx: ") and words in found[0]


def test_ids_outside_the_vocabulary(prefix: str) -> None:
    ids = np.fromfile(prefix + ".bin", np.uint16)
    at = 40
    for place, value in ((at, 1500), (at + 90, 1000)):
        change(prefix + ".bin", 2 * place, "<H", value)
    index = inspect(prefix, UNKNOWN).index
    assert index is not None
    sequence = int(np.searchsorted(np.cumsum(index.lengths), at, side="right"))
    assert damage(prefix)[0] == (
        f"{prefix}.bin: 2 of {len(ids)} ids are outside the vocabulary of 1000, the first, 1500, in sequence {sequence}"
    )
    assert damage(prefix, Vocabulary(2000, None)) == []


def test_negative_ids(tmp_path: Path) -> None:
    prefix = write_dataset(tmp_path / "d", [[[1, 2, 3]], [[4, -7]]], np.int32)
    assert "1 of 5 ids are outside any vocabulary, the first, -7, in sequence 1" in damage(prefix)[0]


def test_ends_of_documents(tmp_path: Path) -> None:
    documents = [[[5, 2]], [], [[6], [7, 3]], [[8, 2]]]
    prefix = write_dataset(tmp_path / "d", documents)

    def note(vocabulary: Vocabulary) -> str:
        return inspect(prefix, vocabulary).notes[-1]

    assert note(UNKNOWN) == "documents end with different tokens: none marks the end of a document"
    assert note(Vocabulary(None, 2)) == "2 documents end with the end-of-document token 2, 1 do not"
    write_manifest(prefix)
    assert damage(prefix) == [
        f"{prefix}.bin: 1 documents do not end with token 2, though made with --append-eod; the first, document 2, "
        "ends with 3"
    ]
    assert "3 documents do not end with token 9" in damage(prefix, Vocabulary(None, 9))[0]


def test_a_manifest_of_another_dataset(prefix: str) -> None:
    write_manifest(prefix, documents=19)
    assert "d.json is of another dataset than" in damage(prefix)[0] and "(19 documents against 20)" in damage(prefix)[0]
    Path(prefix + ".json").write_text("[]")
    assert "is no manifest of this tool" in damage(prefix)[0]
    Path(prefix + ".json").unlink()
    inspection = inspect(prefix, UNKNOWN)
    assert inspection.damage == [] and "no manifest" in inspection.notes[0]


def test_no_tokens(tmp_path: Path) -> None:
    assert damage(write_dataset(tmp_path / "d", [[], []])) == [f"{tmp_path}/d.bin holds no tokens"]
    inspection: Inspection = inspect(write_dataset(tmp_path / "e", []), UNKNOWN)
    assert inspection.index is not None and inspection.index.documents == 0
