"""Outcome, failures and progress in a run folder."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.launch.run_files import Failure, RunFiles, current_run, host_name, read_steps, record_failure
from tests.failures import first_failure, from_batch_script, read_failures


def failure(rank: int, exit_code: int, time: float, host: str = "n1", **more: Any) -> Failure:
    values = {"attempt": 0, "local_rank": rank, "message": "x"} | more
    return Failure(host=host, rank=rank, exit_code=exit_code, time=time, **values)


def test_without_a_run_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMPETE_RUN", raising=False)
    monkeypatch.chdir(tmp_path)
    assert current_run() is None
    record = record_failure("RuntimeError: no\nmore", rank=3, local_rank=1, exit_code=1)
    assert record.describe() == f"rank 3 on host {host_name()} failed: RuntimeError: no"
    assert list(tmp_path.iterdir()) == []


def test_attempt(tmp_path: Path) -> None:
    run = {"COMPETE_RUN": str(tmp_path)}
    assert current_run(run) == RunFiles(tmp_path, 0)
    (tmp_path / "attempts.tsv").write_text("0\t7\n1\t7\n")
    assert current_run(run) == RunFiles(tmp_path, 2)
    assert current_run(run | {"SLURM_RESTART_COUNT": "4"}) == RunFiles(tmp_path, 4)
    assert current_run(run | {"SLURM_RESTART_COUNT": "4", "COMPETE_ATTEMPT": "5"}) == RunFiles(tmp_path, 5)
    with pytest.raises(CompeteError, match="COMPETE_ATTEMPT=x is no number"):
        current_run(run | {"COMPETE_ATTEMPT": "x"})
    with pytest.raises(CompeteError, match="COMPETE_RUN=/nowhere is no folder that this host sees"):
        current_run({"COMPETE_RUN": "/nowhere"})


def test_files_follow_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What shell scripts read: the first word of a file, and one JSON object a line."""
    monkeypatch.setenv("COMPETE_RUN", str(tmp_path))
    monkeypatch.setenv("COMPETE_ATTEMPT", "2")
    monkeypatch.setenv("SLURMD_NODENAME", "gpu07")
    run = current_run()
    assert run is not None
    run.write_outcome("refused", "--lr is missing")
    assert (tmp_path / "outcomes/2").read_text() == "refused\n--lr is missing\n" and run.read_outcome() == "refused"
    run.write_progress({"iteration": 7})
    assert json.loads((tmp_path / "progress.json").read_text()) == {"attempt": 2, "iteration": 7}
    record_failure("", rank=5, local_rank=1, exit_code=-11, at=12.5)
    text = (tmp_path / "failures/2-gpu07-5.json").read_text()
    assert text.count("\n") == 1
    assert json.loads(text) == {
        "attempt": 2, "host": "gpu07", "rank": 5, "local_rank": 1, "exit_code": -11, "time": 12.5, "message": "ended by SIGSEGV",
        "follows": False,
    }  # fmt: skip
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "2",
        "2-gpu07-5.json",
        "progress.json",
    ]


def test_what_the_rank_says_itself_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPETE_RUN", str(tmp_path))
    record_failure("OSError: disk full", rank=1, local_rank=1, exit_code=1, at=10.0)
    seen = record_failure("", rank=1, local_rank=1, exit_code=1, at=11.0)
    assert (seen.message, seen.time) == ("OSError: disk full", 10.0)


EARLY, LATE = failure(0, 1, 1764345600.25), failure(1, 1, 1764345601.0)
KILLED = failure(2, -9, 1764345602.0, host="n2")
FOLLOWED = failure(3, 1, 1764345500.0, host="n3", follows=True)
CASES: dict[str, tuple[list[Failure], Failure | None]] = {
    "none": ([], None),
    "the earliest": ([LATE, EARLY], EARLY),
    "one that was killed, whose clock may be behind": ([LATE, EARLY, KILLED], KILLED),
    "not one that was killed long after": ([EARLY, failure(2, -9, 1764345700.0, host="n2")], EARLY),
    "SIGABRT follows from a peer's end": ([EARLY, failure(2, -6, 1764345600.5)], EARLY),
    "one that only followed does not count": ([LATE, FOLLOWED], LATE),
    "unless there is no other": ([FOLLOWED], FOLLOWED),
    "another attempt's does not count": ([LATE, failure(0, -9, 1764345600.0, attempt=1)], LATE),
    "numbers within a message are not the record's": ([EARLY, failure(1, 1, 1764345601.0, message='{"time": 1, "exit_code": -9}')], EARLY),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_failure_is_the_first(case: str, tmp_path: Path) -> None:
    """For what is printed and for the node that is left out, by the batch script's one rule."""
    failures, expected = CASES[case]
    for each in failures:
        RunFiles(tmp_path, each.attempt).write_failure(each)
    assert first_failure(tmp_path) == expected
    assert from_batch_script(tmp_path, 0, "failed_node") == (expected.host if expected else "-")
    if expected:
        reason = from_batch_script(tmp_path, 0, "failure_reason")
        assert reason.startswith(f"rank {expected.rank} on {expected.host}: ")


def test_damaged_records_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPETE_RUN", str(tmp_path))
    record_failure("x", rank=0, local_rank=0, exit_code=1)
    (tmp_path / "failures/0-n9-1.json").write_text('{"attempt": 0, "ho')
    (tmp_path / "failures/0-n9-2.json").write_text('{"attempt": 0}')
    assert [each.rank for each in read_failures(tmp_path)] == [0]
    assert getattr(first_failure(tmp_path), "rank", None) == 0


def test_notes_that_cannot_be_written_do_not_end_a_job(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "outcomes").write_text("a file where the folder should be")
    RunFiles(tmp_path, 0).write_outcome("finished")
    said = capfd.readouterr().err
    assert said.startswith(f"megatron-compete: {tmp_path}/outcomes/0 cannot be written") and said.count("\n") == 1


def test_progress_is_never_seen_half_written(tmp_path: Path) -> None:
    """A reader beside a writer that replaces it all the time."""
    run = RunFiles(tmp_path, 0)
    run.write_progress({"iteration": -1})
    child = os.fork()
    if child == 0:
        for iteration in range(200):
            run.write_progress({"iteration": iteration, "padding": "x" * (iteration % 3000)})
        os._exit(0)
    seen = 0
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        seen = max(seen, json.loads((tmp_path / "progress.json").read_text())["iteration"])
    assert json.loads((tmp_path / "progress.json").read_text())["iteration"] == 199 and seen >= -1


def test_steps_of_all_attempts_are_lines_of_their_own(tmp_path: Path) -> None:
    """Also after a kill in the midst of a line."""
    assert read_steps(tmp_path) == []
    RunFiles(tmp_path, 0).add_step({"iteration": 1, "loss": 2.5})
    with open(tmp_path / "steps.jsonl", "a") as file:
        file.write('{"attempt": 0, "iterat')
    RunFiles(tmp_path, 1).add_step({"iteration": 1, "loss": 2.5})
    RunFiles(tmp_path, 1).add_step({"iteration": 2, "loss": 2.4})
    assert [(step["attempt"], step["iteration"]) for step in read_steps(tmp_path)] == [(0, 1), (1, 1), (1, 2)]


def test_steps_that_cannot_be_written_do_not_end_a_job(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "steps.jsonl").mkdir()
    RunFiles(tmp_path, 0).add_step({"iteration": 1})
    assert capfd.readouterr().err.startswith(f"megatron-compete: {tmp_path}/steps.jsonl cannot be written")
