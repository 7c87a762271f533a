"""Conversations as the trainer's datasets: which files, which share of them, and what is refused before training."""

import argparse
from pathlib import Path

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.training.vlm.datasets import parts_of


def arguments(**given: object) -> argparse.Namespace:
    none = dict.fromkeys(
        (
            "data_args_path",
            "data_path",
            "per_split_data_args_path",
            "train_data_path",
            "valid_data_path",
            "test_data_path",
            "split",
        )
    )
    return argparse.Namespace(
        **{"mock_data": False, "skip_train": False, "eval_iters": 1, "full_validation": False} | none | given
    )


def test_files_of_each_part_are_read_whole() -> None:
    args = arguments(train_data_path=["a.json", "b.jsonl"], valid_data_path=["c.json"])
    assert parts_of(args) == [(["a.json", "b.jsonl"], (0.0, 1.0)), (["c.json"], (0.0, 1.0)), None]


def test_split_cuts_the_samples_of_all_files() -> None:
    train, valid, test = parts_of(arguments(data_path=["a.json"], split="90,10,0"))
    assert train == (["a.json"], (0.0, 0.9)) and valid == (["a.json"], (0.9, 1.0)) and test is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "no training data: give --train-data-path FILE.json"),
        (
            {"train_data_path": ["0.3", "a.json", "0.7", "b.json"]},
            "a.json has a weight, and conversations are read once an epoch",
        ),
        ({"valid_data_path": ["a.json"]}, "gives training nothing"),
    ],
)
def test_what_cannot_be_read_is_named(given: dict[str, list[str]], words: str, tmp_path: Path) -> None:
    with pytest.raises(CompeteError, match=words):
        parts_of(arguments(**given))
