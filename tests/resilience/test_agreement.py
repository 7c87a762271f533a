"""Ranks hear from rank 0 how it went, before there is a process group and after."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_compete.common.errors import CompeteError
from megatron_compete.resilience import agreement
from megatron_compete.resilience.agreement import PeerFailed, decide_on_rank_0, describe, on_rank_0
from tests.failures import read_failures
from tests.ranks import run_ranks

ERRORS: dict[str, Exception] = {
    "bad input": CompeteError("--luck 0 is too little: raise it"),
    "no file": FileNotFoundError(2, "No such file or directory", "/data/corpus.idx"),
    "a bug": KeyError("sequence_lengths"),
}


def heard(which: str) -> Any:
    """What a rank gets from a step on rank 0, without a process group and with one."""
    calls: list[str] = []

    def step() -> str:
        calls.append(which)
        if which in ERRORS:
            raise ERRORS[which]
        return "shared"

    answers = [_outcome(step)]
    torch.distributed.init_process_group("gloo")  # Megatron's, which shares the store's port
    torch.distributed.barrier()
    answers.append(_outcome(step))
    return answers, len(calls)


def _outcome(step: Any) -> tuple[str, str]:
    try:
        return "got", on_rank_0(step)
    except Exception as error:
        return type(error).__name__, str(error)


def test_all_ranks_get_the_result() -> None:
    assert run_ranks(3, heard, "nothing") == [
        ([("got", "shared")] * 2, 2), ([("got", "shared")] * 2, 0), ([("got", "shared")] * 2, 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("which", "kinds", "text"),
    [
        ("bad input", ("CompeteError", "CompeteError"), "--luck 0 is too little: raise it"),
        ("no file", ("CompeteError", "CompeteError"), "[Errno 2] No such file or directory: '/data/corpus.idx'"),
        ("a bug", ("KeyError", "PeerFailed"), "sequence_lengths"),
    ],
)
def test_whatever_is_raised_on_rank_0_all_ranks_leave(which: str, kinds: tuple[str, str], text: str) -> None:
    (first, _), (second, _) = run_ranks(2, heard, which, timeout=60)
    assert [kind for kind, _ in first] == [kinds[0]] * 2 and [kind for kind, _ in second] == [kinds[1]] * 2
    assert all(text in said for _, said in first + second)
    if which == "a bug":
        assert second[0][1] == "left because rank 0 failed: KeyError: 'sequence_lengths'"


def decided() -> Any:
    return decide_on_rank_0(f"of {os.environ['RANK']}", lambda values: values + ["decided once"])


def test_rank_0_decides_by_what_all_ranks_say() -> None:
    assert run_ranks(3, decided) == [["of 0", "of 1", "of 2", "decided once"]] * 3


def slow(run: str) -> Any:
    """Rank 0 takes longer than its silence would be endured, but shows that it is at work."""
    agreement.PATIENCE_SECONDS, agreement.BEAT_SECONDS = 1.0, 0.2
    return on_rank_0(lambda: time.sleep(3.0) or "done")


def test_a_long_step_is_waited_for(tmp_path: Path) -> None:
    assert run_ranks(2, slow, str(tmp_path)) == ["done", "done"]


def beside_one_that_is_lost(run: str, how: str) -> None:
    """Rank 0 ends, or stands still, in its step; what the other one then says."""
    os.environ.update(COMPETE_RUN=run, COMPETE_ATTEMPT="0")
    agreement.PATIENCE_SECONDS, agreement.BEAT_SECONDS = 1.0, 0.2
    on_rank_0(lambda: None)
    if os.environ["RANK"] == "0":
        on_rank_0(lambda: os.kill(os.getpid(), signal.SIGSTOP if how == "stopped" else signal.SIGKILL))
    try:
        on_rank_0(lambda: None)
    except PeerFailed as lost:
        Path(run, "said").write_text(str(lost))
    raise SystemExit(1)  # ends the test's other rank


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_lost_rank_0_is_not_waited_for_for_ever(how: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError) as ended:
        run_ranks(2, beside_one_that_is_lost, str(tmp_path), how)
    assert "are not done" not in str(ended.value)
    if how == "stopped":  # a launcher cannot see it
        assert (tmp_path / "said").read_text().startswith("left because of rank 0: no answer for 1 s")
        assert [(each.rank, each.follows) for each in read_failures(tmp_path)] == [(0, False)]


def test_one_rank_needs_no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert on_rank_0(lambda: 7) == 7 and decide_on_rank_0(3, sum) == 3
    with pytest.raises(CompeteError, match="No such file"):
        on_rank_0(lambda: Path("/nowhere").read_text())


def test_ranks_with_the_same_problem_are_named_together() -> None:
    assert describe({1: "full", 4: "full", 2: "gone"}) == "ranks 1, 4: full; rank 2: gone"
