"""The demo's model on 2 nodes x 2 tasks of a real Slurm, interrupted; its curve is the uninterrupted run's to the bit."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.trained import Corpus, TrainedRun, make_corpus, write_run

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]

LONG, SHORT = 120, 12
"""Steps of the run that meets its time limit again and again, and of the others."""

FEW = ("--train-iters", LONG, "--exit-interval", SHORT)
"""`SHORT` steps of the same training: Megatron shuffles the data by the number of steps that it is to last."""

WAIT = 1500.0
"""Seconds for a job of several attempts on a busy machine."""


@pytest.fixture(scope="module")
def corpus(slurm: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "corpus")


@pytest.fixture(scope="module")
def reference(slurm: Cluster, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """The same training as one uninterrupted job."""
    run = write_run(slurm, tmp_path_factory.mktemp("reference") / "run", corpus, "--train-iters", LONG)
    job_id = slurm.submit(run.script)
    assert slurm.finish(job_id, WAIT) == "COMPLETED", slurm.log(job_id)
    assert len(run.attempts()) == 1
    return run


def start_up_seconds(run: TrainedRun) -> float:
    """From the beginning of an attempt to its first step, by the clock of the logs."""
    log = next((run.folder / "logs").glob("*.log")).read_text()
    first = re.search(r"\[(\d+-\d+-\d+ \d+:\d+:\d+)[.\d]*\] iteration +1/", log)
    assert first, log
    return time.mktime(time.strptime(first[1], "%Y-%m-%d %H:%M:%S")) - float(run.attempts()[0]["begin"])


def check_curves(run: TrainedRun, reference: TrainedRun, steps: int) -> None:
    """All curves of the training itself are the reference's to the bit, at every step.

    Not `expert-change-rate`, which observes tokens of an attempt's first step.
    """
    expected, found = reference.scalars(), run.scalars()
    compared = [name for name in expected if name.startswith(("lm loss", "grad-norm", "competition/", "moe/"))
                and " vs " not in name and "change-rate" not in name]  # fmt: skip
    assert "lm loss" in compared and any(name.startswith("competition/") for name in compared)
    for name in compared:
        wanted = {step: value for step, value in expected[name].items() if step <= steps}
        assert found[name] == wanted, name
    assert sorted(found["lm loss"]) == list(range(1, steps + 1))


def test_time_limits_do_not_show_in_the_curve(
    cluster: Cluster, corpus: Corpus, reference: TrainedRun, tmp_path: Path
) -> None:
    """Slurm looks at time limits every 30 s, and sends the signal up to 30 s early: an attempt is told to stop between
    `least` and `least` + 30 s after its beginning. Steps are so slow that three attempts are needed at least."""
    start_up = start_up_seconds(reference)
    least = max(30.0, 1.5 * start_up + 20)
    minutes = int((least + 35) // 60) + 1
    seconds = int(60 * minutes - 30 - least)
    pace = 2.3 * (least + 30 - 0.8 * start_up) / (2 * LONG)  # two microbatches a step
    run = write_run(
        cluster, tmp_path / "run", corpus, "--train-iters", LONG, "--time", minutes,
        pace=pace, SIGNAL_SECONDS=str(max(seconds, 1)), MAX_FAILURES="20",
    )  # fmt: skip
    job_id = cluster.submit(run.script)
    assert cluster.finish(job_id, WAIT) == "COMPLETED", cluster.log(job_id)
    outcomes = [row["outcome"] for row in run.attempts()]
    assert outcomes == ["stopped"] * (len(outcomes) - 1) + ["finished"] and len(outcomes) >= 3, outcomes
    assert int(cluster.job(job_id)["Restarts"]) == len(outcomes) - 1
    check_curves(run, reference, LONG)
    assert run.logged_iterations() == list(range(1, LONG + 1)), "no step was lost or trained twice"


def test_preempted_job_resumes_at_the_next_step(
    cluster: Cluster, corpus: Corpus, reference: TrainedRun, tmp_path: Path
) -> None:
    """A job of a higher partition takes all nodes; Slurm requeues this one, with KillWait for its checkpoint."""
    run = write_run(cluster, tmp_path / "run", corpus, *FEW, pace=0.3)
    job_id = cluster.submit(run.script)
    run.await_iteration(3)
    urgent = cluster.submit("--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 3")
    assert cluster.finish(urgent) == "COMPLETED"
    assert cluster.finish(job_id, WAIT) == "COMPLETED", cluster.log(job_id)
    assert [row["outcome"] for row in run.attempts()] == ["stopped", "finished"]
    assert run.logged_iterations() == list(range(1, SHORT + 1))
    check_curves(run, reference, SHORT)


def test_killed_rank_costs_the_steps_since_the_checkpoint(
    cluster: Cluster, corpus: Corpus, reference: TrainedRun, tmp_path: Path
) -> None:
    run = write_run(
        cluster, tmp_path / "run", corpus, *FEW, "--save-interval", 4, pace=0.3
    )  # fmt: skip
    job_id = cluster.submit(run.script)
    run.await_iteration(6)
    os.kill(_a_rank(run.folder), signal.SIGKILL)
    assert cluster.finish(job_id, WAIT) == "COMPLETED", cluster.log(job_id)
    rows = run.attempts()
    assert [row["outcome"] for row in rows] == ["failed", "finished"]
    assert "SIGKILL" in rows[0]["reason"] and rows[0]["failed_node"] == cluster.nodes[1], rows[0]
    iterations = run.logged_iterations()
    resumed = iterations.index(5, iterations.index(6))
    assert iterations == list(range(1, iterations[resumed - 1] + 1)) + list(range(5, SHORT + 1))
    check_curves(run, reference, SHORT)


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
def test_other_launchers_train_the_same(
    cluster: Cluster, corpus: Corpus, reference: TrainedRun, tmp_path: Path, launcher: str
) -> None:
    run = write_run(cluster, tmp_path / "run", corpus, *FEW, "--launcher", launcher, pace=0.3)
    job_id = cluster.submit(run.script)
    run.await_iteration(3)
    cluster.command("scancel", "--batch", "--signal=TERM", job_id)
    assert cluster.finish(job_id, WAIT) == "COMPLETED", cluster.log(job_id)
    assert [row["outcome"] for row in run.attempts()] == ["stopped", "finished"]
    assert run.logged_iterations() == list(range(1, SHORT + 1))
    check_curves(run, reference, SHORT)


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
