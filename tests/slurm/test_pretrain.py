"""The demo's model on 2 nodes x 2 tasks of a real Slurm, interrupted; its curve is the uninterrupted run's to the bit."""

import os
import signal
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.trained import STEPS, Corpus, TrainedRun, make_corpus, write_run

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(7200)]

WAIT = 3000.0
"""Seconds for a job of several attempts on a busy machine."""


@pytest.fixture(scope="module")
def corpus(slurm: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "corpus")


@pytest.fixture(scope="module")
def reference(slurm: Cluster, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """The same training as one uninterrupted job."""
    run = write_run(slurm, tmp_path_factory.mktemp("reference") / "run", corpus)
    job_id = slurm.submit(run.script)
    assert slurm.finish(job_id, WAIT) == "COMPLETED", slurm.log(job_id)
    assert len(run.attempts()) == 1
    return run


def check_curves(run: TrainedRun, reference: TrainedRun) -> None:
    """All curves of the training itself are the reference's to the bit, at every step.

    Not `expert-change-rate`, which observes tokens of an attempt's first step.
    """
    expected, found = reference.scalars(), run.scalars()
    compared = [name for name in expected if name.startswith(("lm loss", "grad-norm", "competition/", "moe/"))
                and " vs " not in name and "change-rate" not in name]  # fmt: skip
    assert "lm loss" in compared and any(name.startswith("competition/") for name in compared)
    for name in compared:
        assert found[name] == expected[name], name
    assert sorted(found["lm loss"]) == list(range(1, STEPS + 1))


def bring_time_limit_near(cluster: Cluster, job_id: str, signal_seconds: int) -> None:
    """Set a running job's time limit a minute or so after its stop signal is due."""
    hours, minutes, seconds = map(int, cluster.job(job_id)["RunTime"].split(":"))
    ran = 3600 * hours + 60 * minutes + seconds
    cluster.command("scontrol", "update", f"JobId={job_id}", f"TimeLimit={(ran + signal_seconds) // 60 + 1}")


def test_time_limits_do_not_show_in_the_curve(
    cluster: Cluster, corpus: Corpus, reference: TrainedRun, tmp_path: Path
) -> None:
    """Two limits, each reached in a step that waits for it: start-up may take as long as it likes.

    Slurm looks at time limits every 30 s, and sends the signal up to 30 s early.
    """
    run = write_run(cluster, tmp_path / "run", corpus, "--time", 240, SIGNAL_SECONDS="120")
    run.hold(5, 9)
    job_id = cluster.submit(run.script)
    for held, attempts in ((5, 1), (9, 2)):
        run.await_iteration(held - 1)
        bring_time_limit_near(cluster, job_id, signal_seconds=120)
        run.await_true(lambda attempts=attempts: len(run.attempts()) == attempts, "end of the attempt", WAIT)
        cluster.wait(job_id, lambda job: job["JobState"] in ("PENDING", "RUNNING"), WAIT)
        cluster.command("scontrol", "update", f"JobId={job_id}", "TimeLimit=240")
    assert cluster.finish(job_id, WAIT) == "COMPLETED", cluster.log(job_id)
    assert [row["outcome"] for row in run.attempts()] == ["stopped", "stopped", "finished"]
    assert cluster.job(job_id)["Restarts"] == "2"
    assert run.logged_iterations() == list(range(1, STEPS + 1)), "no step was lost or trained twice"
    check_curves(run, reference)


def test_preempted_job_resumes_at_the_next_step(
    cluster: Cluster, corpus: Corpus, reference: TrainedRun, tmp_path: Path
) -> None:
    """A job of a higher partition takes all nodes; Slurm requeues this one, with KillWait for its checkpoint."""
    run = write_run(cluster, tmp_path / "run", corpus)
    run.hold(4)
    job_id = cluster.submit(run.script)
    run.await_iteration(3)
    urgent = cluster.submit("--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 3")
    assert cluster.finish(urgent) == "COMPLETED"
    assert cluster.finish(job_id, WAIT) == "COMPLETED", cluster.log(job_id)
    assert [row["outcome"] for row in run.attempts()] == ["stopped", "finished"]
    assert run.logged_iterations() == list(range(1, STEPS + 1))
    check_curves(run, reference)


def test_killed_rank_costs_the_steps_since_the_checkpoint(
    cluster: Cluster, corpus: Corpus, reference: TrainedRun, tmp_path: Path
) -> None:
    run = write_run(cluster, tmp_path / "run", corpus, "--save-interval", 4)
    run.hold(7)
    job_id = cluster.submit(run.script)
    run.await_iteration(6)
    os.kill(_a_rank(run.folder), signal.SIGKILL)
    run.await_true(lambda: len(run.attempts()) == 1, "end of the attempt")
    run.release()
    assert cluster.finish(job_id, WAIT) == "COMPLETED", cluster.log(job_id)
    rows = run.attempts()
    assert [row["outcome"] for row in rows] == ["failed", "finished"]
    assert "SIGKILL" in rows[0]["reason"] and rows[0]["failed_node"] == cluster.nodes[1], rows[0]
    assert run.logged_iterations() == [*range(1, 7), *range(5, STEPS + 1)]
    check_curves(run, reference)


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
def test_other_launchers_train_the_same(
    cluster: Cluster, corpus: Corpus, reference: TrainedRun, tmp_path: Path, launcher: str
) -> None:
    run = write_run(cluster, tmp_path / "run", corpus, "--launcher", launcher)
    run.hold(4)
    job_id = cluster.submit(run.script)
    run.await_iteration(3)
    cluster.command("scancel", "--batch", "--signal=TERM", job_id)
    assert cluster.finish(job_id, WAIT) == "COMPLETED", cluster.log(job_id)
    assert [row["outcome"] for row in run.attempts()] == ["stopped", "finished"]
    assert run.logged_iterations() == list(range(1, STEPS + 1))
    check_curves(run, reference)


def _a_rank(folder: Path) -> int:
    """Process id of the last rank of this run."""
    for entry in Path("/proc").iterdir():
        try:
            variables = (entry / "environ").read_bytes().split(b"\0") if entry.name.isdecimal() else []
            name = (entry / "cmdline").read_bytes() if variables else b""
        except OSError:
            continue
        if b"training.pretrain" in name and b"RANK=3" in variables and f"COMPETE_RUN={folder}".encode() in variables:
            return int(entry.name)
    raise AssertionError("no rank 3 is running")
