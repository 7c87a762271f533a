"""Conversations from megatron-energon in the trainer, where it is installed: kept at its place by rank."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest
from megatron.core import mpu

from megatron_compete.common.errors import CompeteError
from megatron_compete.report.scalars import read_scalars
from megatron_compete.training.vlm.external import _place
from tests.data.conversations.shards import write_shards
from tests.ranks import run_ranks
from tests.training.runs import train_on_rank
from tests.training.vlm.runs import MODEL, write_data


def train(arguments: str) -> None:
    """On two ranks; no process checks energon's samples before training."""
    words = MODEL.replace("--conversation-workers 1", "").split()
    run_ranks(2, train_on_rank, [*words, *arguments.split()])


@pytest.mark.usefixtures("installed")
def test_a_resumed_run_reads_on_where_it_stopped(tmp_path: Path) -> None:
    words = write_data(tmp_path).split()
    flags = dict(zip(words[::2], words[1::2]))
    records = json.loads(Path(flags["--train-data-path"]).read_text())
    shards = write_shards(tmp_path / "shards", records, Path(flags["--image-folder"]), ("train", 0.5), ("val", 0.5))
    common = (
        f"--tokenizer-model {tmp_path}/processor --image-processor {tmp_path}/processor --energon-path {shards} "
        f"--dataloader-type external --dataloader-save {tmp_path}/places --save {tmp_path}/ckpt --save-interval 2 "
        "--eval-iters 1 --eval-interval 2 --train-iters 4"
    )
    train(f"{common} --tensorboard-dir {tmp_path}/whole")
    (tmp_path / "ckpt/latest_checkpointed_iteration.txt").write_text("2")
    train(f"{common} --load {tmp_path}/ckpt --tensorboard-dir {tmp_path}/again")
    whole, again = (read_scalars(tmp_path / name) for name in ("whole", "again"))
    assert again["lm loss"] == {step: whole["lm loss"][step] for step in (3, 4)}
    assert whole["lm loss"][4] != whole["lm loss"][2] and whole["lm loss validation"]


@pytest.fixture
def installed() -> None:
    pytest.importorskip("megatron.energon")


def test_a_place_that_was_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("get_data_parallel_rank", 1), ("get_pipeline_model_parallel_world_size", 1)):
        monkeypatch.setattr(mpu, name, lambda value=value: value)
    given: dict[str, Any] = {"iteration": 4}
    with pytest.raises(CompeteError, match=r"resuming at step 4 with --energon-path .*: give --dataloader-save"):
        _place(argparse.Namespace(dataloader_save=None, **given))
    message = re.escape(f"--dataloader-save {tmp_path} has no train_dataloader_dprank001.pt of step 4")
    with pytest.raises(CompeteError, match=message):
        _place(argparse.Namespace(dataloader_save=str(tmp_path), **given))
