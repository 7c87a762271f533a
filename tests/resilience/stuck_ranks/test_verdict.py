"""Who is blamed when a job stands still."""

import sys
from dataclasses import replace

from megatron_compete.resilience.stuck_ranks.verdict import Report, judge, phase_of, stack_of

WAITING = (
    ("/lib/megatron/training/training.py", 3, "train_step"),
    ("/lib/torch/distributed/distributed_c10d.py", 9, "all_reduce"),
)
BUSY = (("/lib/megatron/training/training.py", 3, "train_step"), ("/work/data/reader.py", 7, "next_sample"))
HOSTS = {rank: f"n{rank // 2}" for rank in range(4)}


def report(rank: int, stack: tuple = WAITING, **changes: object) -> Report:
    plain = Report(
        rank, HOSTS[rank], iteration=12, microbatches=100, silent_seconds=61.0, phase="training", stack=stack
    )
    return replace(plain, **changes)


def test_who_does_not_answer_is_stuck() -> None:
    verdict = judge([report(0), report(1, BUSY), report(3)], 4, HOSTS)
    assert (verdict.rank, verdict.host) == (2, "n1")
    assert verdict.describe() == (
        "rank 2 on host n1 is stuck: it does not answer (its process is stopped, or its host is gone); 3 ranks wait at "
        "iteration 12"
    )
    assert "nor do ranks 2, 3" in judge([report(0)], 4, HOSTS).reason


def test_who_is_busy_while_others_wait_is_stuck() -> None:
    verdict = judge([report(0), report(1), report(2), report(3, BUSY)], 4, HOSTS)
    assert verdict.describe() == (
        "rank 3 on host n1 is stuck: training at iteration 12 for 61 s in next_sample (data/reader.py:7), while 3 other "
        "ranks wait"
    )
    several = judge([report(0), report(1, BUSY), report(2, BUSY, microbatches=99), report(3)], 4, HOSTS)
    assert several.rank == 2 and several.reason.endswith("while 2 other ranks wait; so are ranks 1")


def test_who_is_behind_is_stuck() -> None:
    verdict = judge([report(0), report(1, microbatches=98), report(2), report(3)], 4, HOSTS)
    assert verdict.rank == 1 and "2 microbatches behind others" in verdict.reason


def test_nobody_in_particular() -> None:
    verdict = judge([report(rank) for rank in range(4)], 4, HOSTS)
    assert verdict.rank is None and verdict.describe().startswith("the job is stuck: all ranks wait for each other")
    assert "4 ranks in all_reduce (distributed/distributed_c10d.py:9)" in verdict.reason
    assert judge([report(rank, BUSY) for rank in range(4)], 4, HOSTS).reason.startswith("no rank waits")


def test_phases() -> None:
    assert phase_of(WAITING) == "training"
    assert phase_of((("training.py", 1, "evaluate"), *WAITING[1:])) == "evaluating"
    assert phase_of((("training.py", 1, "train_step"), ("checkpointing.py", 1, "save_checkpoint"))) == "saving"
    assert phase_of(()) == "between steps"


def test_a_report_travels_as_text() -> None:
    here = report(1, stack_of(sys._getframe()))
    assert here.stack[-1][2] == "test_a_report_travels_as_text"
    assert Report.from_json(here.to_json()) == here
