"""At which iterations the trainer's arguments have something logged."""

import argparse

import pytest

from megatron_compete.training.metrics import log_intervals


@pytest.mark.parametrize(
    "tensorboard, wandb, expected", [(None, "", [6, 12]), ("tb", "", [4, 6, 8, 12]), (None, "project", [4, 6, 8, 12])]
)
def test_without_a_writer_the_console_alone_is_logged(tensorboard: str | None, wandb: str, expected: list[int]) -> None:
    intervals = log_intervals(
        argparse.Namespace(tensorboard_dir=tensorboard, wandb_project=wandb, tensorboard_log_interval=4, log_interval=6)
    )
    assert [iteration for iteration in range(1, 13) if intervals.logs(iteration)] == expected
