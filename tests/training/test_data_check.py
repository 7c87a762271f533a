"""Data that Megatron would read for ever, run out of, or read as something else."""

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.dataset import Dataset, open_dataset
from megatron_compete.training import data_check
from megatron_compete.training.data_check import check_data, check_split, known_ids
from tests.data.datasets import write_dataset
from tests.training.test_data_arguments import arguments

VOCABULARY = 100


def dataset(folder: Path, documents: int, ids: Sequence[int] = range(5), name: str = "some", **how: Any) -> Dataset:
    return open_dataset(write_dataset(folder / name, [[list(ids)]] * documents, **how))


@pytest.mark.parametrize(("documents", "split", "part"), [(1, "97,3,0", "validation"), (10, "98,2,0", "validation"), (3, "1,98,1", "training")])  # fmt: skip
def test_a_part_without_documents_is_refused(documents: int, split: str, part: str, tmp_path: Path) -> None:
    with pytest.raises(CompeteError, match=f"--split {split} leaves {part} none of the {documents} documents"):
        check_split(dataset(tmp_path, documents), split)


@pytest.mark.parametrize(("documents", "split"), [(1, "100,0,0"), (1, "1"), (100, "98,1,1"), (30, "97,3,0")])
def test_parts_with_documents_pass(documents: int, split: str, tmp_path: Path) -> None:
    check_split(dataset(tmp_path, documents), split)


def test_a_part_needs_tokens_and_not_documents(tmp_path: Path) -> None:
    empty_at_the_end = open_dataset(write_dataset(tmp_path / "some", [[[1, 2]]] * 46 + [[[]]] * 4))
    check_split(empty_at_the_end, "90,10,0")
    with pytest.raises(CompeteError, match=r"leaves validation 4 of the 50 documents of .*, which hold no tokens"):
        check_split(empty_at_the_end, "92,8,0")


@pytest.fixture
def args(monkeypatch: pytest.MonkeyPatch) -> Namespace:
    monkeypatch.setattr(data_check, "get_tokenizer", lambda: Namespace(vocab_size=VOCABULARY))
    return arguments(
        tokenizer_type="NullTokenizer", tokenizer_model=None, vocab_size=VOCABULARY, sft=False, seq_length=4, train_iters=5,
        train_samples=None, global_batch_size=2, per_dataset_sequences_path=None, split="100,0,0", vocab_file=None,
        merge_file=None, padded_vocab_size=VOCABULARY,
    )  # fmt: skip


def test_datasets_without_weights_are_read_once(args: Namespace, tmp_path: Path) -> None:
    args.data_path = [dataset(tmp_path, 4, name=name).prefix for name in ("a", "b")]  # 19 // 4 samples each
    with pytest.raises(CompeteError, match="2 datasets without weights are read once, which makes 8 samples, and the run is of 10"):  # fmt: skip
        check_data(args)
    args.train_iters = 4
    check_data(args)
    args.train_iters, args.data_path = 1000, ["1", args.data_path[0], "1", args.data_path[1]]
    check_data(args)


def test_counts_beside_an_index_must_be_its_own(args: Namespace, tmp_path: Path) -> None:
    prefix = dataset(tmp_path, 4).prefix
    args.data_path, args.per_dataset_sequences_path = [prefix], str(tmp_path / "counts.json")
    Path(args.per_dataset_sequences_path).write_text(json.dumps({prefix: [4, 5]}))
    check_data(args)
    for counts in ({prefix: [4, 4]}, {prefix: [3, 5]}, {"other": [4, 5]}):
        Path(args.per_dataset_sequences_path).write_text(json.dumps(counts))
        with pytest.raises(CompeteError, match=r"--per-dataset-sequences-path has .* for .*, which has \[4, 5\]"):
            check_data(args)
    for wrong in ("[1]", "{", '{"a": 4}', '{"a": [true, 5]}'):
        Path(args.per_dataset_sequences_path).write_text(wrong)
        with pytest.raises(CompeteError, match="--per-dataset-sequences-path"):
            check_data(args)


def test_counts_leave_no_word_on_the_width_of_ids(args: Namespace, tmp_path: Path) -> None:
    prefix = dataset(tmp_path, 4, dtype=np.int32).prefix
    args.data_path, args.per_dataset_sequences_path = [prefix], str(tmp_path / "counts.json")
    Path(args.per_dataset_sequences_path).write_text(json.dumps({prefix: [4, 5]}))
    with pytest.raises(CompeteError, match="are int32, and Megatron would read them as uint16"):
        check_data(args)


def test_a_cache_that_cannot_be_made(args: Namespace, tmp_path: Path) -> None:
    args.data_path, args.data_cache_path = [dataset(tmp_path, 4).prefix], "/proc/nowhere/cache"
    with pytest.raises(CompeteError, match="--data-cache-path /proc/nowhere/cache cannot be made: "):
        check_data(args)


def test_full_validation_has_no_weights(args: Namespace, tmp_path: Path) -> None:
    prefix = dataset(tmp_path, 100).prefix
    args.data_path, args.full_validation, args.split = ["1", prefix], True, "90,10,0"
    with pytest.raises(CompeteError, match="--full-validation reads every validation document once"):
        check_data(args)


def test_no_data_and_dialogues_that_are_not_there(args: Namespace) -> None:
    with pytest.raises(CompeteError, match="no training data: give --data-path"):
        check_data(args)
    args.sft, args.data_path = True, ["nowhere.jsonl"]
    with pytest.raises(CompeteError, match=r"--sft: no file nowhere\.jsonl"):
        check_data(args)


def test_ids_beyond_a_hole_count_where_the_model_has_them() -> None:
    """Megatron counts the tokens of a Hugging Face tokenizer, and pads that."""
    hugging_face = SimpleNamespace(get_vocab=lambda: {"a": 0, "b": 1, "reserved": 800})
    tokenizer = SimpleNamespace(vocab_size=3, _tokenizer=SimpleNamespace(tokenizer=hugging_face))
    assert [known_ids(tokenizer, padded) for padded in (128, 800, 801, 896)] == [128, 800, 801, 801]
    assert known_ids(SimpleNamespace(vocab_size=3), 128) == 3
