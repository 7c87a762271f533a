"""Status from run folders written by hand, and a queue that is stood in for."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_compete.cluster.queue import Queue, ask_queue
from megatron_compete.cluster.status import RunStatus, read_status, runs_in
from megatron_compete.cluster.status_report import duration
from megatron_compete.common.errors import CompeteError

ROOT = Path(__file__).resolve().parents[2]
NOW = 1_000_000.0
RUNNING = "41|RUNNING|None|10:00|1:00:00|50:00|2026-01-01T00:00:00|n[1-2]"
PENDING = "41|PENDING|Resources|0:00|1:00:00|1:00:00|N/A|"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was submitted, for 100 steps."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "job.json").write_text(
        json.dumps({"job_id": "41", "submitted": "2026-01-01T00:00:00", "kind": "pretrain"})
    )
    (folder / "recipe.yaml").write_text(f"arguments:\n  train-iters: 100\n  save: {folder}/checkpoints\n")
    (folder / "cluster.env").write_text("COMPETE_SIGNAL_SECONDS=600\n")
    return folder


def attempt(run: Path, number: int, outcome: str, code: int = 0, node: str = "-", reason: str = "-") -> None:
    with open(run / "attempts.tsv", "a") as file:
        begin = 900_000 + 4000 * number
        file.write("\t".join(map(str, [number, 41, begin, begin + 3600, "n[1-2]", outcome, code, node, reason])) + "\n")


def progress(run: Path, **changes: Any) -> None:
    values = {
        "attempt": 0, "iteration": 40, "train_iters": 100, "loss": 2.5, "tokens_per_second": 1000.0, "seconds_per_step": 300.0,
        "consumed_tokens": 12_000_000, "time": NOW - 30, "checkpoint": 30, "world_size": 4, "log_interval": 1,
    }  # fmt: skip
    (run / "progress.json").write_text(json.dumps(values | changes))


def begun(run: Path) -> None:
    (run / "attempt.running").write_text(f"41\t{NOW - 600:.0f}\tn[1-2]\n")


def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *lines: str, error: str = "") -> Queue:
    """The queue as this output of squeue says."""
    stand_in = tmp_path / "bin" / "squeue"
    stand_in.parent.mkdir(exist_ok=True)
    (tmp_path / "answer").write_text("".join(f"{line}\n" for line in lines))
    stand_in.write_text(f"#!/bin/sh\ncat {tmp_path}/answer\n{f'echo {error!r} >&2; exit 1' if error else ''}\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_in.parent}:{os.environ['PATH']}")
    return ask_queue(["41"])


EMPTY = Queue(known=True, jobs={})
UNKNOWN = Queue(known=False, jobs={})


def state(run: Path, queue: Queue) -> tuple[str, str | None]:
    status = read_status(run, queue, NOW)
    return status.state, status.reason


def test_waiting(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = squeue(tmp_path, monkeypatch, PENDING)
    assert state(run, queue) == ("pending", "Resources")
    attempt(run, 0, "stopped", 75)
    assert state(run, queue) == ("requeued", "Resources")
    queue = squeue(
        tmp_path, monkeypatch, PENDING.replace("N/A", "2026-01-02T10:00:00").replace("Resources", "BeginTime")
    )
    assert state(run, queue) == ("requeued", "BeginTime, expected 2026-01-02T10:00:00")


def test_running(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = squeue(tmp_path, monkeypatch, RUNNING)
    begun(run)
    assert state(run, queue) == ("starting", None)
    attempt(run, 0, "failed", 1, "n2", "exit code 137")
    progress(run)
    assert state(run, queue) == ("starting", None), "that step was the attempt before's"
    progress(run, attempt=1)
    (run / "checkpoints/latest_checkpointed_iteration.txt").write_text("39")
    os.utime(run / "checkpoints/latest_checkpointed_iteration.txt", (NOW - 120, NOW - 120))
    assert read_status(run, queue, NOW) == RunStatus(
        run=str(run), kind="pretrain", state="running", reason=None, job_id="41", nodes="n[1-2]", iteration=40, train_iters=100,
        loss=2.5, tokens_per_second=1000.0, seconds_per_step=300.0, consumed_tokens=12_000_000, checkpoint=39,
        checkpoint_age_seconds=120.0, progress_age_seconds=30.0, restarts=1, failures=["attempt 0: exit code 137"],
        used_seconds=3600.0 + 600.0, limit_left_seconds=3000, training_left_seconds=18000.0, requeues_left=6,
    )  # fmt: skip
    # 18000 s are left; this start has 3000 - 600 until its signal, each further one 3600 - 600: 5.2 of them.


@pytest.mark.parametrize(("age", "expected"), [(2999, "running"), (3001, "stalled")])
def test_stalled(age: int, expected: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(run)
    progress(run, time=NOW - age)
    assert state(run, squeue(tmp_path, monkeypatch, RUNNING))[0] == expected
    assert state(run, UNKNOWN)[0] == expected
    progress(run, time=NOW - age, log_interval=10)
    assert state(run, UNKNOWN)[0] == "running", "lines come at every tenth step"


def test_over(run: Path) -> None:
    assert state(run, EMPTY) == ("failed", "left the queue before it began: cancelled, or a job before it failed")
    begun(run)
    assert state(run, EMPTY)[0] == "failed"
    (run / "attempt.running").unlink()
    attempt(run, 0, "stopped", 75, reason="told to stop")
    assert state(run, EMPTY) == ("stopped", "told to stop")
    attempt(run, 1, "refused", 2, reason="--lr is missing")
    assert state(run, EMPTY) == ("refused", "--lr is missing")
    attempt(run, 2, "failed", 137, "n2", "srun: error: n2: task 1: Killed")
    assert state(run, EMPTY) == ("failed", "srun: error: n2: task 1: Killed")
    attempt(run, 3, "lost", reason="its batch script was killed")
    assert state(run, EMPTY) == ("failed", "its batch script was killed")
    assert read_status(run, EMPTY, NOW).failures == [
        "attempt 1: --lr is missing", "attempt 2: srun: error: n2: task 1: Killed", "attempt 3: its batch script was killed",
    ]  # fmt: skip
    (run / "finished").touch()
    assert state(run, EMPTY) == ("finished", None)


def test_the_reason_is_the_one_that_the_batch_script_counted(run: Path) -> None:
    """Which failure came first is decided once; a record that would be chosen otherwise changes nothing."""
    attempt(run, 0, "failed", 1, "n2", "rank 3 on n2: ended by SIGKILL")
    (run / "failures").mkdir()
    record = {"attempt": 0, "host": "n1", "rank": 0, "local_rank": 0, "exit_code": 1, "time": 5.0, "message": "lost"}
    (run / "failures/0-n1-0.json").write_text(json.dumps(record))
    assert state(run, EMPTY) == ("failed", "rank 3 on n2: ended by SIGKILL")


@pytest.mark.parametrize(
    ("interval", "iterations", "expected"),
    [(1, [1, 2, 3, 4], 0), (1, [1, 2, 3, 2, 3, 4], 2), (10, [10, 20, 30, 20, 30, 10], 50), (1, [], 0)],
)
def test_steps_that_were_trained_again(interval: int, iterations: list[int], expected: int, run: Path) -> None:
    """From the run's own lines, not from a log that several processes write."""
    progress(run, log_interval=interval)
    (run / "steps.jsonl").write_text("".join(json.dumps({"iteration": each}) + "\n" for each in iterations))
    assert read_status(run, EMPTY, NOW).repeated_steps == expected


def test_a_trainer_without_a_batch_script(run: Path) -> None:
    """COMPETE_RUN was set by hand: no job, no attempts, but what the trainer wrote."""
    (run / "job.json").unlink()
    assert state(run, EMPTY) == ("new", None)
    progress(run)
    assert state(run, EMPTY) == ("running", None)
    progress(run, time=NOW - 9000)
    assert state(run, EMPTY)[0] == "stalled"
    (run / "outcomes").mkdir()
    (run / "outcomes/0").write_text("stopped\nafter iteration 40\n")
    assert state(run, EMPTY) == ("stopped", "after iteration 40")


def test_squeue_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert squeue(tmp_path, monkeypatch, error="slurm_load_jobs error: Invalid job id specified") == EMPTY
    assert squeue(tmp_path, monkeypatch, error="Unable to contact slurm controller") == UNKNOWN
    job = squeue(tmp_path, monkeypatch, RUNNING.replace("1:00:00", "UNLIMITED").replace("50:00", "UNLIMITED")).jobs[
        "41"
    ]
    assert (job.used_seconds, job.limit_seconds, job.left_seconds, job.waits) == (600, None, None, False)
    day = squeue(tmp_path, monkeypatch, RUNNING.replace("1:00:00", "1-02:04:00")).jobs["41"]
    assert day.limit_seconds == 93840
    monkeypatch.setenv("PATH", "/nowhere")
    assert ask_queue(["41"]) == UNKNOWN
    assert ask_queue([]) == EMPTY


def test_damaged_files_are_what_is_not_known(run: Path) -> None:
    for name in ("job.json", "progress.json", "recipe.yaml", "cluster.env"):
        (run / name).write_text("{ [")
    (run / "attempts.tsv").write_text("0\t41\t9")
    status = read_status(run, EMPTY, NOW)
    assert (status.state, status.iteration, status.restarts) == ("new", None, 0)


def test_a_chain_shows_its_jobs_in_order(tmp_path: Path, run: Path) -> None:
    chain = tmp_path / "chain"
    for name in ("10-evaluate", "2-pretrain", "1-preprocess"):
        (chain / name).mkdir(parents=True)
        (chain / name / "submit.sbatch").touch()
    (chain / "notes").mkdir()
    assert [path.name for path in runs_in(chain)] == ["1-preprocess", "2-pretrain", "10-evaluate"]
    assert runs_in(run) == [run]
    with pytest.raises(CompeteError, match="notes is no run folder"):
        runs_in(chain / "notes")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "megatron_compete", "status", *arguments],
        capture_output=True, text=True, cwd=ROOT, timeout=120, env=os.environ | {"COLUMNS": "160", "PATH": "/usr/local/empty"},
    )  # fmt: skip


def test_command(run: Path, tmp_path: Path) -> None:
    progress(run)
    attempt(run, 0, "refused", 2, reason="--lr [bold] is missing")
    one = command(str(run))
    assert one.returncode == 0, one.stderr
    for expected in (
        "refused: --lr [bold] is missing",
        "40/100 40%",
        "tokens/s        1,000",
        "12,000,000",
        "attempt 0: --lr",
    ):
        assert expected in one.stdout
    other = tmp_path / "other"
    other.mkdir()
    (other / "submit.sbatch").touch()
    both = command(str(run), str(other))
    assert [line.split()[:3] for line in both.stdout.splitlines()[1:3]] == [
        ["run", "41", "refused"],
        ["other", "-", "new"],
    ]
    assert "run: attempt 0: --lr [bold] is missing" in both.stdout
    document = json.loads(command(str(run), str(other), "--json").stdout)
    assert [each["state"] for each in document] == ["refused", "new"] and document[0]["loss"] == 2.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere"], "error: /nowhere is no run folder, and holds none: give one that `megatron-compete submit` wrote"),
        (["--watch", "0", "."], "error: --watch 0 is out of range: give seconds above 0"),
        ([".", "--wacht", "3"], "error: status takes no argument --wacht (did you mean --watch?): see megatron-compete status --help"),
    ],
)  # fmt: skip
def test_bad_arguments(arguments: list[str], message: str) -> None:
    result = command(*arguments)
    assert (result.returncode, result.stderr) == (2, message + "\n")


def test_watch_shows_changes(run: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "megatron_compete", "status", str(run), "--json", "--watch", "0.1"],
        stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if '"state"' in line and "finished" not in line:
                (run / "finished").touch()
            elif '"state": "finished"' in line:
                break
        else:
            raise AssertionError("it ended by itself")
    finally:
        process.kill()
        process.communicate()


def test_nothing_heavy_is_imported(run: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from megatron_compete.cluster.status_report import read_all, report; "
        f"report(read_all([Path({str(run)!r})])); assert not {{'torch', 'numpy', 'megatron'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_duration() -> None:
    texts = {None: "-", 0: "0 s", 59.6: "1 min", 61: "1 min 1 s", 3600: "1 h", 7300: "2 h 1 min", 100_000: "1 d 3 h"}
    assert {seconds: duration(seconds) for seconds in texts} == texts
