"""Parts of --split that Megatron could not fill."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from megatron_compete.errors import CompeteError
from megatron_compete.training.data_check import check_split, known_ids


def dataset(folder: Path, documents: int) -> str:
    prefix = str(folder / "some")
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for _ in range(documents):
        builder.add_document(torch.arange(5), [5])
    builder.finalize(f"{prefix}.idx")
    return prefix


@pytest.mark.parametrize(("documents", "split", "part"), [(1, "97,3,0", "validation"), (10, "98,2,0", "validation"), (3, "1,98,1", "training")])  # fmt: skip
def test_a_part_without_documents_is_refused(documents: int, split: str, part: str, tmp_path: Path) -> None:
    with pytest.raises(CompeteError, match=f"--split {split} leaves {part} none of the {documents} documents"):
        check_split(dataset(tmp_path, documents), split)


@pytest.mark.parametrize(("documents", "split"), [(1, "100,0,0"), (1, "1"), (100, "98,1,1"), (30, "97,3,0")])
def test_parts_with_documents_pass(documents: int, split: str, tmp_path: Path) -> None:
    check_split(dataset(tmp_path, documents), split)


def test_ids_beyond_a_hole_count_where_the_model_has_them() -> None:
    """Megatron counts the tokens of a Hugging Face tokenizer, and pads that."""
    hugging_face = SimpleNamespace(get_vocab=lambda: {"a": 0, "b": 1, "reserved": 800})
    tokenizer = SimpleNamespace(vocab_size=3, _tokenizer=SimpleNamespace(tokenizer=hugging_face))
    assert [known_ids(tokenizer, padded) for padded in (128, 800, 801, 896)] == [128, 800, 801, 801]
    assert known_ids(SimpleNamespace(vocab_size=3), 128) == 3
