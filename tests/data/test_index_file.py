"""Megatron's index, read by map."""

from pathlib import Path

import numpy as np
import pytest

from megatron_compete.data import index_file
from megatron_compete.data.index_file import DamagedIndex, read_index
from megatron_compete.data.indexed import DTYPES
from tests.data.datasets import random_documents, write_dataset


def test_codes_are_megatrons() -> None:
    from megatron.core.datasets.indexed_dataset import DType

    assert {dtype.value: getattr(np, dtype.name) for dtype in DType} == DTYPES


def test_tables_are_what_megatrons_reader_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    monkeypatch.setattr(index_file, "CHUNK", 7)
    documents = random_documents(40)
    prefix = write_dataset(tmp_path / "d", documents, np.int32)
    index, theirs = read_index(prefix + ".idx"), IndexedDataset(prefix, mmap=True)
    assert (index.dtype, index.sequences, index.documents) == (np.int32, len(theirs), 40)
    assert (index.lengths == theirs.sequence_lengths).all() and (index.bounds == theirs.document_indices).all()
    assert (index.pointers == theirs.index.sequence_pointers).all()
    sizes = [sum(map(len, sequences)) for sequences in documents]
    assert index.document_tokens(0, 40).tolist() == sizes and index.document_tokens(5, 9).tolist() == sizes[5:9]
    assert index.tokens == sum(sizes)
    assert [index.document_bytes(number) for number in range(40)] == [
        (4 * sum(sizes[:number]) if size else 0, 4 * size) for number, size in enumerate(sizes)
    ]
    chunks = list(index.chunks())
    assert [len(chunk.document_ends) for chunk in chunks] == [7] * 5 + [5]
    assert np.concatenate([chunk.lengths for chunk in chunks]).tolist() == index.lengths.tolist()


def test_nothing_but_empty_documents(tmp_path: Path) -> None:
    index = read_index(write_dataset(tmp_path / "d", [[], []]) + ".idx")
    assert (index.sequences, index.documents, index.tokens) == (0, 2, 0)
    assert index.document_tokens(0, 2).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: b"X" + raw[1:], "no index of Megatron's"),
        (lambda raw: b"", "no index of Megatron's"),
        (lambda raw: raw[:20], "ends after 20 bytes"),
        (lambda raw: raw[:9] + b"\x02" + raw[10:], "version is 2"),
        (lambda raw: raw[:17] + b"\x63" + raw[18:], "dtype code is 99"),
        (lambda raw: raw[:17] + b"\x07" + raw[18:], "dtype code is 7, float32: token ids are integers"),
        (lambda raw: raw[:-8], "sequences in 5 documents take"),
        (lambda raw: raw[:26] + bytes(8) + raw[34:], "table of documents is empty"),
    ],
)
def test_damage(change: object, words: str, tmp_path: Path) -> None:
    path = Path(write_dataset(tmp_path / "d", random_documents(5, seed=1)) + ".idx")
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DamagedIndex, match=words):
        read_index(str(path))


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(DamagedIndex, match="No such file"):
        read_index(str(tmp_path / "none.idx"))


def test_multimodal_is_noticed(tmp_path: Path) -> None:
    path = Path(write_dataset(tmp_path / "d", [[[1, 2], [3]]]) + ".idx")
    path.write_bytes(path.read_bytes() + b"\x00\x01")
    assert read_index(str(path)).multimodal
