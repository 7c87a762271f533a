"""Which ranks read files before training: one for the whole job."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_compete.common.errors import CompeteError
from tests.data.datasets import write_dataset
from tests.ranks import run_ranks
from tests.training.runs import MODEL


def opened(folder: str, flags: str) -> list[str]:
    """Files below `folder` that this rank opens until Megatron's trainer begins."""
    from megatron_compete.training import pretrain

    paths: list[str] = []
    sys.addaudithook(lambda event, args: paths.append(str(args[0])) if event == "open" else None)

    def begin(*args: object, **named: object) -> None:
        raise KeyboardInterrupt

    pretrain.pretrain = begin
    sys.argv = ["pretrain", *MODEL.replace("--mock-data", "").split(), *flags.split()]
    try:
        pretrain.train()
    except KeyboardInterrupt:
        return sorted({os.path.basename(path) for path in paths if path.startswith(folder)})
    except CompeteError as error:
        return [str(error)]
    raise AssertionError("training has ended")


@pytest.fixture
def data(tmp_path: Path) -> str:
    draw = np.random.default_rng(0)
    return write_dataset(tmp_path / "data", [[draw.integers(0, 120, 60).tolist()] for _ in range(100)])


def test_one_rank_reads_the_data(data: str, tmp_path: Path) -> None:
    flags = f"--train-iters 2 --data-path {data} --split 90,5,5 --probe-data {data} --probe-log {tmp_path}/log --probe-sequences 2"
    first, second, third = run_ranks(3, opened, str(tmp_path), f"{flags} --global-batch-size 6")
    assert f"{Path(data).name}.idx" in first and f"{Path(data).name}.bin" in first
    assert second == third == []


def test_what_it_finds_wrong_all_ranks_say(data: str, tmp_path: Path) -> None:
    Path(f"{data}.bin").write_bytes(b"torn")
    said = run_ranks(2, opened, str(tmp_path), f"--train-iters 2 --data-path {data} --split 90,5,5")
    assert said[0] == said[1] and data in said[0][0]
