"""Indices and parts against Megatron's builder."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_compete.data import indexed
from megatron_compete.data.indexed import IndexChunk, copy_range, write_index

DOCUMENTS = st.lists(st.lists(st.lists(st.integers(0, 60_000), min_size=1, max_size=4), max_size=3), max_size=6)


def chunk(documents: Sequence[Sequence[Sequence[int]]]) -> IndexChunk:
    lengths = [len(sentence) for document in documents for sentence in document]
    ends = np.cumsum([len(document) for document in documents])
    return IndexChunk(np.array(lengths, dtype=np.int32), ends.astype(np.int64))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunks=st.lists(DOCUMENTS, max_size=4), dtype=st.sampled_from([np.uint16, np.int32]))
def test_index_is_the_builders(tmp_path: Path, chunks: list[Any], dtype: type[Any]) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(tmp_path / "b.bin"), dtype=dtype)
    documents = [document for one in chunks for document in one]
    for document in documents:
        ids = [token for sentence in document for token in sentence]
        builder.add_document(ids, [len(sentence) for sentence in document])
    builder.finalize(str(tmp_path / "b.idx"))
    sequences = sum(map(len, documents))
    write_index(str(tmp_path / "o.idx"), dtype, sequences, len(documents), lambda: map(chunk, chunks))
    assert (tmp_path / "o.idx").read_bytes() == (tmp_path / "b.idx").read_bytes()


@pytest.mark.parametrize("kernel", [True, False])
def test_ranges_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: bool) -> None:
    if not kernel:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
        monkeypatch.setattr(indexed, "_COPY_BYTES", 7)
    (tmp_path / "source").write_bytes(bytes(range(100)))
    source, target = os.open(tmp_path / "source", os.O_RDONLY), os.open(tmp_path / "target", os.O_WRONLY | os.O_CREAT)
    copy_range(source, target, 10, 50)
    copy_range(source, target, 0, 5)
    assert (tmp_path / "target").read_bytes() == bytes(range(10, 60)) + bytes(range(5))
    with pytest.raises(EOFError, match="10 bytes are missing"):
        copy_range(source, target, 90, 20)
    os.close(source)
    os.close(target)
