"""A rank that stands still: it is named, and the job ends."""

import json
import os
from pathlib import Path

import pytest

from tests.faults.injected import RUN, failing, loop_at_step, sleep_at_step, stop_at_step, train

pytestmark = pytest.mark.faults

LIMIT = 8


FLAGS = f"{RUN} --stuck-timeout {LIMIT}"
FAULTS = {
    "SIGSTOP": (stop_at_step, (1, 4), "rank 1 on host"),
    "SIGSTOP of the rank that holds the store": (stop_at_step, (0, 4), "rank 0"),
    "endless loop": (loop_at_step, (1, 4), "_busy_data_loader"),
    "sleep": (sleep_at_step, (0, 4, 1000.0), "rank 0 on host"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_rank_is_named(fault: str, tmp_path: Path) -> None:
    inject, values, said = FAULTS[fault]
    failing(2, FLAGS, (in_run_folder, (str(tmp_path),)), (inject, values))
    records = [json.loads(path.read_text()) for path in (tmp_path / "failures").glob("3-*.json")]
    first = min(records, key=lambda record: record["time"])
    assert first["rank"] == values[0]
    assert "is stuck: " in first["message"] and said in first["message"]


def in_run_folder(folder: str) -> None:
    """As the batch script sets it; the fork server has its own environment."""
    os.environ.update(COMPETE_RUN=folder, COMPETE_ATTEMPT="3")


def test_a_slow_step_evaluation_and_a_slow_save_are_not_stuck(tmp_path: Path) -> None:
    train(2, f"{RUN} --stuck-timeout {LIMIT} --eval-interval 3 --eval-iters 2 --save {tmp_path}/ckpt",
          (sleep_at_step, (1, 1, LIMIT + 2.0)), (slow_save, (LIMIT + 2.0,)))  # fmt: skip


def slow_save(seconds: float) -> None:
    """The second save takes longer than the limit."""
    import time

    from megatron_compete.resilience.saving.guard import Guard

    upstream, calls = Guard._save_shards, iter(range(100))

    def save(self: Guard, *args: object, **named: object) -> object:
        if next(calls) == 1:
            time.sleep(seconds)
        return upstream(self, *args, **named)

    Guard._save_shards = save
