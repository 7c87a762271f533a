"""A job's life with the real batch scripts on a real Slurm; the trainer is a stand-in of a few lines."""

import itertools
import sys
import time
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.runs import REPOSITORY, StandInRun, stand_in_run, write_trainer

pytestmark = pytest.mark.slurm

STOPS_TWICE = """
    progress(10 * attempt + 5, 10 * attempt)
    if attempt < 2:
        until_told()
        progress(10 * attempt + 10, 10 * attempt + 10)
        outcome("stopped", f"told to stop at {10 * attempt + 10}")
        leave(75)
    (run / "trained").touch()
    outcome("finished")
"""


def await_file(path: Path, seconds: float = 600.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} is not there after {seconds} s"
        time.sleep(0.1)


def tell_to_stop(cluster: Cluster, job_id: str) -> None:
    """What Slurm does --signal=B:TERM@... before the time limit."""
    cluster.command("scancel", "--batch", "--signal=TERM", job_id)


def test_stopped_job_is_requeued_under_its_id_until_it_has_finished(cluster: Cluster, tmp_path: Path) -> None:
    run = stand_in_run(tmp_path / "run", STOPS_TWICE)
    job_id = cluster.submit(run.script)
    after = cluster.submit(
        f"--dependency=afterok:{job_id}", f"--output={tmp_path}/after", f"--wrap=ls {run.folder}/trained"
    )
    for attempt in range(2):
        await_file(run.folder / f"up-{attempt}-0")
        await_file(run.folder / f"up-{attempt}-1")
        assert cluster.job(after)["JobState"] == "PENDING"
        tell_to_stop(cluster, job_id)
    assert cluster.finish(job_id) == "COMPLETED", cluster.log(job_id)
    assert run.outcomes() == ["stopped", "stopped", "finished"]
    assert [row["job"] for row in run.attempts()] == [job_id] * 3
    assert [row["reason"] for row in run.attempts()] == ["told to stop at 10", "told to stop at 20", "-"]
    assert cluster.job(job_id)["Restarts"] == "2"
    assert (run.folder / "finished").exists()
    assert cluster.finish(after) == "COMPLETED"
    assert (tmp_path / "after").read_text().strip() == f"{run.folder}/trained"


def test_finished_run_submitted_again_does_nothing(cluster: Cluster, tmp_path: Path) -> None:
    run = stand_in_run(tmp_path / "run", 'open(run / f"ran-{attempt}", "w"); outcome("finished")')
    assert cluster.finish(cluster.submit(run.script)) == "COMPLETED"
    again = cluster.submit(run.script)
    assert cluster.finish(again) == "COMPLETED"
    assert f"{run.folder} is finished: nothing to do" in cluster.log(again)
    assert run.outcomes() == ["finished"] and run.wrote("ran-1") is None


def test_requeue_from_outside_goes_on_without_a_second_requeue(cluster: Cluster, tmp_path: Path) -> None:
    """`scontrol requeue` and preemption end everything with SIGTERM; the ranks have KillWait to save."""
    trainer = """
        if attempt == 0:
            until_told()
            time.sleep(2)  # a save
            progress(7, 7)
            outcome("stopped")
            leave(75)
        (run / "went-on-from").write_text((run / "progress.json").read_text())
        outcome("finished")
    """
    run = stand_in_run(tmp_path / "run", trainer)
    job_id = cluster.submit(run.script)
    await_file(run.folder / "up-0-1")
    cluster.command("scontrol", "requeue", job_id)
    assert cluster.finish(job_id) == "COMPLETED", cluster.log(job_id)
    assert run.outcomes() == ["stopped", "finished"]
    assert cluster.job(job_id)["Restarts"] == "1"
    assert '"checkpoint": 7' in (run.wrote("went-on-from") or "")


def test_cancelled_job_stays_cancelled(cluster: Cluster, tmp_path: Path) -> None:
    run = stand_in_run(tmp_path / "run", 'until_told(); outcome("stopped"); leave(75)')
    job_id = cluster.submit(run.script)
    await_file(run.folder / "up-0-0")
    await_file(run.folder / "up-0-1")
    cluster.command("scancel", job_id)
    assert cluster.finish(job_id) == "CANCELLED"
    assert run.outcomes() == ["stopped"] and not (run.folder / "finished").exists()


def test_bad_input_is_not_tried_again(cluster: Cluster, tmp_path: Path) -> None:
    trainer = 'outcome("refused", "--lr 0: choose a rate above 0"); leave(2)'
    run = stand_in_run(tmp_path / "run", trainer)
    job_id = cluster.submit(run.script)
    assert cluster.finish(job_id) == "FAILED"
    assert cluster.job(job_id)["ExitCode"] == "2:0" and cluster.job(job_id)["Restarts"] == "0"
    assert run.outcomes() == ["refused"] and run.attempts()[0]["reason"] == "--lr 0: choose a rate above 0"
    assert "stopped for good, because trying again cannot help: --lr 0" in cluster.log(job_id)


def test_code_0_alone_is_not_finished(cluster: Cluster, tmp_path: Path) -> None:
    trainer = """
        if attempt == 0:
            sys.exit()  # as Megatron does where it finds no checkpoint
        outcome("finished")
    """
    run = stand_in_run(tmp_path / "run", trainer)
    assert cluster.finish(cluster.submit(run.script)) == "COMPLETED"
    assert run.outcomes() == ["failed", "finished"]
    assert run.attempts()[0]["reason"] == "left with exit code 0 and did not say that it had finished"
    assert run.attempts()[0]["failed_node"] == "-"


def test_a_job_that_always_fails_is_given_up_with_its_reason(cluster: Cluster, tmp_path: Path) -> None:
    run = stand_in_run(
        tmp_path / "run", 'failure(1, "out of \\"luck\\"") if rank == 0 else None; leave(1)',
        MAX_FAILURES="3", BACKOFF_SECONDS="8", NODE_FAILURES="9",
    )  # fmt: skip
    job_id = cluster.submit(run.script)
    assert cluster.finish(job_id) == "FAILED"
    rows = run.attempts()
    assert [row["outcome"] for row in rows] == ["failed"] * 3
    assert all(row["reason"].endswith(': exit code 1: out of "luck"') for row in rows)
    waits = [int(later["begin"]) - int(earlier["end"]) for earlier, later in itertools.pairwise(rows)]
    assert waits[0] >= 7 and waits[1] >= 15, "backed off 8 s, then 16 s"
    assert "gave up after 3 attempts in a row without a new checkpoint" in cluster.log(job_id)


def test_failures_with_progress_between_them_are_not_counted_together(cluster: Cluster, tmp_path: Path) -> None:
    trainer = """
        if attempt < 4:
            progress(attempt + 1, attempt + 1)
            leave(1)
        outcome("finished")
    """
    run = stand_in_run(tmp_path / "run", trainer, MAX_FAILURES="2", NODE_FAILURES="9")
    assert cluster.finish(cluster.submit(run.script)) == "COMPLETED"
    assert run.outcomes() == ["failed"] * 4 + ["finished"]


def test_start_up_that_outlasts_the_time_limit_is_given_up(cluster: Cluster, tmp_path: Path) -> None:
    run = stand_in_run(tmp_path / "run", 'until_told(); outcome("stopped"); leave(75)', MAX_FAILURES="2")
    job_id = cluster.submit(run.script)
    for attempt in range(2):
        await_file(run.folder / f"up-{attempt}-0")
        await_file(run.folder / f"up-{attempt}-1")
        tell_to_stop(cluster, job_id)
    assert cluster.finish(job_id) == "FAILED"
    assert run.outcomes() == ["stopped", "stopped"]
    assert "gave up after 2 attempts in a row without a new checkpoint" in cluster.log(job_id)


def test_killed_before_it_could_handle_the_signal_counts_as_stopped(cluster: Cluster, tmp_path: Path) -> None:
    trainer = """
        if attempt == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            (run / f"up-{attempt}-{rank}").touch()
            until_ended()
        progress(1, 1)
        outcome("finished")
    """
    run = stand_in_run(tmp_path / "run", trainer)
    job_id = cluster.submit(run.script)
    await_file(run.folder / "up-0-0")
    await_file(run.folder / "up-0-1")
    tell_to_stop(cluster, job_id)
    assert cluster.finish(job_id) == "COMPLETED", cluster.log(job_id)
    assert run.outcomes() == ["stopped", "finished"]


def test_time_limits(cluster: Cluster, tmp_path: Path) -> None:
    """Ranks that do not stop are ended before the limit; without a signal before it, they stop at the limit itself."""
    header = "--nodes=2 --ntasks-per-node=2 --time=1"
    deaf = stand_in_run(
        tmp_path / "deaf", "if attempt == 0: until_told(); time.sleep(1000)\noutcome('finished')",
        f"{header} --signal=B:TERM@20", SIGNAL_SECONDS="20",
    )  # fmt: skip
    untold = stand_in_run(
        tmp_path / "untold",
        "if attempt == 0: until_told(); progress(1, 1); leave(75)\noutcome('finished')",
        header,
    )
    ids = [cluster.submit(run.script) for run in (deaf, untold)]
    for job_id in ids:
        assert cluster.finish(job_id) == "COMPLETED", cluster.log(job_id)
        assert cluster.job(job_id)["Restarts"] == "1"
    assert deaf.outcomes() == ["failed", "finished"] and untold.outcomes() == ["stopped", "finished"]
    row = deaf.attempts()[0]
    assert row["reason"].startswith("no checkpoint within 20 s before the time limit: raise COMPETE_SIGNAL_SECONDS")
    assert row["failed_node"] == "-"


def test_one_failed_rank_ends_the_whole_job(cluster: Cluster, tmp_path: Path) -> None:
    trainer = """
        if attempt == 0 and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if attempt == 0:
            until_ended()  # waits for a peer that is gone
        outcome("finished")
    """
    run = stand_in_run(tmp_path / "run", trainer)
    job_id = cluster.submit(run.script)
    assert cluster.finish(job_id) == "COMPLETED", cluster.log(job_id)
    first, second = run.attempts()
    assert (first["outcome"], second["outcome"]) == ("failed", "finished")
    assert first["failed_node"] == cluster.nodes[1] and "task 1: Killed" in first["reason"]


def test_the_first_failure_names_the_node(cluster: Cluster, tmp_path: Path) -> None:
    """A rank that was killed comes before its peers' lost connections, whoever wrote first."""
    trainer = """
        if attempt == 0:
            now = 1764345600.0
            if rank == 0:
                failure(1, "connection closed by peer", at=now)
            else:
                failure(-9, "killed", at=now + 1)
                failure(1, "connection closed by peer", of=2, at=now + 1)
                (run / "recorded").touch()
            until_there("recorded")
            leave(1)
        outcome("finished")
    """
    run = stand_in_run(tmp_path / "run", trainer)
    assert cluster.finish(cluster.submit(run.script)) == "COMPLETED"
    first = run.attempts()[0]
    assert first["failed_node"] == cluster.nodes[1]
    assert first["reason"] == f"rank 1 on {cluster.nodes[1]}: ended by SIGKILL: killed"


def test_a_node_that_fails_twice_is_left_out(cluster: Cluster, tmp_path: Path) -> None:
    bad, excluded = cluster.nodes[0], cluster.nodes[3]
    trainer = f"""
        if node == "{bad}":
            failure(1, "bad memory")
            sys.exit(1)
        if "{bad}" in os.environ["SLURM_JOB_NODELIST"]:
            until_ended()
        if "{bad}" not in os.environ["SLURM_JOB_NODELIST"] and rank == 0:
            (run / "nodes").write_text(os.environ["SLURM_JOB_NODELIST"])
            outcome("finished")
    """
    run = stand_in_run(tmp_path / "run", trainer, f"--nodes=2 --ntasks-per-node=1 --exclude={excluded}", MAX_FAILURES="5")  # fmt: skip
    job_id = cluster.submit(run.script)
    assert cluster.finish(job_id) == "COMPLETED", cluster.log(job_id)
    assert run.outcomes() == ["failed", "failed", "finished"]
    assert [row["failed_node"] for row in run.attempts()] == [bad, bad, "-"]
    left_out = cluster.command("scontrol", "show", "hostnames", cluster.job(job_id)["ExcNodeList"]).split()
    assert sorted(left_out) == [bad, excluded], "its own and the one the user had left out"


def test_a_node_is_kept_where_no_other_is_left(cluster: Cluster, tmp_path: Path) -> None:
    trainer = f"""
        if attempt < 3:
            failure(1, "bad") if node == "{cluster.nodes[2]}" else until_ended()
            sys.exit(1)
        outcome("finished")
    """
    run = stand_in_run(tmp_path / "run", trainer, "--nodes=4 --ntasks-per-node=1", MAX_FAILURES="9", TASKS_PER_NODE="1")
    job_id = cluster.submit(run.script)
    assert cluster.finish(job_id) == "COMPLETED", cluster.log(job_id)
    assert f"{cluster.nodes[2]} failed 2 times or more, but only 3 other nodes are up in main" in cluster.log(job_id)


@pytest.mark.parametrize("which", ["first", "last"])
def test_a_dead_node_is_replaced(cluster: Cluster, tmp_path: Path, which: str) -> None:
    """With the first node the batch script dies too: Slurm requeues, and the next attempt writes the lost one down."""
    trainer = """
        if attempt == 0:
            until_told()
            sys.exit(1)  # without its peer there is no checkpoint to save
        outcome("finished")
    """
    run = stand_in_run(tmp_path / "run", trainer)
    job_id = cluster.submit(run.script)
    await_file(run.folder / "up-0-0")
    await_file(run.folder / "up-0-1")
    dead = cluster.nodes[0 if which == "first" else 1]
    cluster.kill_node(dead)
    try:
        assert cluster.finish(job_id) == "COMPLETED", cluster.log(job_id)
    finally:
        cluster.start_node(dead)
        deadline = time.monotonic() + 600
        while dead not in cluster.usable_nodes() and time.monotonic() < deadline:
            time.sleep(0.2)
    assert dead in cluster.usable_nodes()
    rows = run.attempts()
    assert rows[-1]["outcome"] == "finished" and dead not in rows[-1]["nodes"]
    assert len(rows) == 2 and rows[0]["outcome"] == {"first": "lost", "last": "failed"}[which]


def test_a_second_job_of_the_same_folder_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    run = stand_in_run(tmp_path / "run", 'until_told(); progress(1, 1); outcome("finished")')
    first = cluster.submit(run.script)
    await_file(run.folder / "up-0-0")
    await_file(run.folder / "up-0-1")
    second = cluster.submit(run.script)
    assert cluster.finish(second) == "FAILED"
    assert f"error: job {first} is running in {run.folder}: wait for it, or scancel it" in cluster.log(second)
    tell_to_stop(cluster, first)
    assert cluster.finish(first) == "COMPLETED" and run.outcomes() == ["finished"]


def test_where_requeueing_is_forbidden_a_new_job_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    run = stand_in_run(tmp_path / "run", STOPS_TWICE)
    stand_ins = tmp_path / "bin"
    stand_ins.mkdir()
    (stand_ins / "scontrol").write_text(
        '#!/bin/sh\n[ "$1" != requeue ] || { echo "Requested operation is presently disabled" >&2; exit 1; }\n'
        f'exec {cluster.command("which", "scontrol")} "$@"\n'
    )
    (stand_ins / "scontrol").chmod(0o755)
    ids = [cluster.submit(run.script, PATH=f"{stand_ins}:{cluster.environment['PATH']}")]
    for attempt in range(2):
        await_file(run.folder / f"up-{attempt}-0")
        await_file(run.folder / f"up-{attempt}-1")
        tell_to_stop(cluster, ids[-1])
        cluster.finish(ids[-1])
        assert "jobs that wait for" in cluster.log(ids[-1])
        ids.append(str(run.job_record()["job_id"]))
    assert cluster.finish(ids[-1]) == "COMPLETED"
    assert [row["job"] for row in run.attempts()] == ids and len(set(ids)) == 3


def test_a_controller_that_does_not_answer_is_waited_for(cluster: Cluster, tmp_path: Path) -> None:
    run = stand_in_run(tmp_path / "run", "if attempt == 0: sys.exit(1)\noutcome('finished')")
    stand_ins = tmp_path / "bin"
    stand_ins.mkdir()
    (stand_ins / "scontrol").write_text(
        f"""#!/bin/sh
        if [ "$1 $2" = "show job" ] && [ ! -e {tmp_path}/asked-twice ]; then
            if [ -e {tmp_path}/asked ]; then touch {tmp_path}/asked-twice; else touch {tmp_path}/asked; fi
            echo "Unable to contact slurm controller (connect failure)" >&2
            exit 1
        fi
        exec {cluster.command("which", "scontrol")} "$@"
        """
    )
    (stand_ins / "scontrol").chmod(0o755)
    job_id = cluster.submit(run.script, PATH=f"{stand_ins}:{cluster.environment['PATH']}")
    assert cluster.finish(job_id) == "COMPLETED", cluster.log(job_id)
    assert run.outcomes() == ["failed", "finished"] and (tmp_path / "asked-twice").exists()


def test_a_job_that_is_still_being_signalled_is_running(cluster: Cluster, tmp_path: Path) -> None:
    """Slurm shows it as SIGNALING until every node has answered, which is when the signal must be passed on."""
    run = stand_in_run(tmp_path / "run", STOPS_TWICE.replace("attempt < 2", "attempt < 1"))
    stand_ins = tmp_path / "bin"
    stand_ins.mkdir()
    real = cluster.command("which", "scontrol")
    (stand_ins / "scontrol").write_text(
        f'#!/bin/sh\n[ "$1" = show ] || exec {real} "$@"\n{real} "$@" | sed s/JobState=RUNNING/JobState=SIGNALING/\n'
    )
    (stand_ins / "scontrol").chmod(0o755)
    job_id = cluster.submit(run.script, PATH=f"{stand_ins}:{cluster.environment['PATH']}")
    await_file(run.folder / "up-0-0")
    await_file(run.folder / "up-0-1")
    tell_to_stop(cluster, job_id)
    assert cluster.finish(job_id) == "COMPLETED", cluster.log(job_id)
    assert run.outcomes() == ["stopped", "finished"] and cluster.job(job_id)["Restarts"] == "1"


def test_job_submitted_without_requeue_is_requeued_all_the_same(cluster: Cluster, tmp_path: Path) -> None:
    run = stand_in_run(tmp_path / "run", STOPS_TWICE.replace("attempt < 2", "attempt < 1"))
    job_id = cluster.submit("--no-requeue", run.script)
    await_file(run.folder / "up-0-0")
    await_file(run.folder / "up-0-1")
    tell_to_stop(cluster, job_id)
    assert cluster.finish(job_id) == "COMPLETED", cluster.log(job_id)
    assert cluster.job(job_id)["Restarts"] == "1"


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
def test_other_launchers_pass_the_signal_and_the_code_on(cluster: Cluster, tmp_path: Path, launcher: str) -> None:
    run = stand_in_run(tmp_path / "run", STOPS_TWICE.replace("attempt < 2", "attempt < 1"), LAUNCHER=launcher)
    job_id = cluster.submit(run.script)
    for rank in range(4):
        await_file(run.folder / f"up-0-{rank}")
    tell_to_stop(cluster, job_id)
    assert cluster.finish(job_id) == "COMPLETED", cluster.log(job_id)
    assert run.outcomes() == ["stopped", "finished"]


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
def test_other_launchers_end_with_a_failed_rank(cluster: Cluster, tmp_path: Path, launcher: str) -> None:
    trainer = """
        if attempt == 0:
            if rank == 3:
                failure(1, "lost")
                sys.exit(1)
            until_ended()
        outcome("finished")
    """
    run = stand_in_run(tmp_path / "run", trainer, LAUNCHER=launcher)
    job_id = cluster.submit(run.script)
    assert cluster.finish(job_id) == "COMPLETED", cluster.log(job_id)
    assert run.outcomes() == ["failed", "finished"]
    assert run.attempts()[0]["reason"] == f"rank 3 on {cluster.nodes[1]}: exit code 1: lost"


CONTAINERS = {
    # everything up to the image is apptainer's; the image here is the host itself
    "apptainer": 'while [ "$1" != "$IMAGE" ]; do echo "apptainer $1" >>"$COMPETE_RUN/options"; shift; done; shift; exec "$@"',
    # the options that the pyxis plugin adds to srun
    "srun": 'for o; do shift; case $o in --container-*) echo "$o" >>"$COMPETE_RUN/options" ;; *) set -- "$@" "$o" ;; esac; done; '
    'exec "$REAL_SRUN" "$@"',
}
"""Stand-ins for container runtimes, which write down their options and run the command on the host."""


@pytest.mark.parametrize("software", ["apptainer", "pyxis"])
def test_ranks_in_containers(cluster: Cluster, tmp_path: Path, software: str) -> None:
    stand_ins = tmp_path / "bin"
    stand_ins.mkdir()
    name = "apptainer" if software == "apptainer" else "srun"
    (stand_ins / name).write_text(f"#!/bin/bash\n{CONTAINERS[name]}\n")
    (stand_ins / name).chmod(0o755)
    run = stand_in_run(
        tmp_path / "run", STOPS_TWICE.replace("attempt < 2", "attempt < 1"), SOFTWARE=software, IMAGE="compete.sif",
        MOUNTS="/data:/data",
    )  # fmt: skip
    job_id = cluster.submit(
        run.script, IMAGE="compete.sif", REAL_SRUN=cluster.command("which", "srun"),
        PATH=f"{stand_ins}:{sys.prefix}/bin:{cluster.environment['PATH']}",
    )  # fmt: skip
    await_file(run.folder / "up-0-0")
    await_file(run.folder / "up-0-1")
    tell_to_stop(cluster, job_id)
    assert cluster.finish(job_id) == "COMPLETED", cluster.log(job_id)
    assert run.outcomes() == ["stopped", "finished"]
    assert f"/data:/data,{run.folder}:{run.folder}" in (run.wrote("options") or "")


def test_by_hand(cluster: Cluster, tmp_path: Path) -> None:
    """`sbatch slurm/pretrain.sbatch RECIPE --flag value`, from a checkout."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "slurm").symlink_to(REPOSITORY / "slurm")
    write_trainer(checkout, """
        progress(attempt + 1, attempt + 1)
        if attempt == 0:
            until_told()
            outcome("stopped")
            leave(75)
        (run / "arguments").write_text(" ".join(sys.argv[1:])) if rank == 0 else None
        outcome("finished")
    """)  # fmt: skip
    (checkout / "cluster.env").write_text(f"COMPETE_VENV={sys.prefix}\nCOMPETE_TASKS_PER_NODE=1\n")
    job_id = cluster.submit(
        "--nodes=2", f"--chdir={checkout}", f"--output={tmp_path}/log",
        REPOSITORY / "slurm" / "pretrain.sbatch", "recipe.yaml", "--lr", "2e-3", REPO=str(checkout),
        COMPETE_RUN=str(tmp_path / "run"), COMPETE_CLUSTER=str(checkout / "cluster.env"),
    )  # fmt: skip
    run = StandInRun(tmp_path / "run")
    await_file(run.folder / "up-0-0")
    await_file(run.folder / "up-0-1")
    tell_to_stop(cluster, job_id)
    assert cluster.finish(job_id) == "COMPLETED", cluster.log(job_id)
    assert run.outcomes() == ["stopped", "finished"]
    words = run.wrote("arguments") or ""
    assert words.startswith("pretrain --recipe recipe.yaml --save ")
    assert f"--save {run.folder}/checkpoints" in words and "--exit-signal-handler --lr 2e-3" in words
    assert "--nnodes 2 --nproc-per-node 1" in words
