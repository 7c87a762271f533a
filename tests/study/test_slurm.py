"""The job arrays, with sbatch stood in for."""

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_compete.common.command_line import take_options
from megatron_compete.common.errors import CompeteError
from megatron_compete.study.command import StudyOptions, main
from megatron_compete.study.config import Study
from megatron_compete.study.grid import runs_of
from megatron_compete.study.slurm import submit, write_array
from tests.study.fabricated import CONTENT, study_of


def flags(*words: str) -> StudyOptions:
    return take_options(StudyOptions, vars(main.parse(["--config", "study.yaml", "--slurm", *words])))


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return study_of(
        tmp_path,
        seeds=[1, 2],
        starts={"dense": {"steps": 5, "upcycle": {"experts": 8}}},
        variants=CONTENT["variants"] | {"late": {"start": "dense"}},
        slurm={"partition": "gpu", "gpus-per-node": 1, "exclusive": True, "at-once": 3},
    )


def test_starts_then_runs_then_the_report(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = tmp_path / "bin/sbatch"
    stand_in.parent.mkdir()
    stand_in.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/submitted\nwc -l < {tmp_path}/submitted | tr -d " "\n')
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_in.parent}:/usr/bin:/bin")
    submit(study, runs_of(study), tmp_path / "study.yaml", tmp_path, flags())
    starts, runs, report = (tmp_path / "submitted").read_text().splitlines()
    assert "--array=0-1%3 --job-name=study-starts" in starts and "--dependency" not in starts
    assert "--partition=gpu --gpus-per-node=1 --exclusive" in starts
    assert "--array=0-7%3" in runs and "--dependency=afterok:1" in runs
    assert "--dependency=afterany:2" in report and "--report-only" in report
    assert (tmp_path / "slurm/starts.txt").read_text() == "dense/seed-1\ndense/seed-2\n"
    assert (tmp_path / "slurm/runs.txt").read_text().splitlines()[3] == "late/seed-1"


def test_steps_are_timed_by_a_job_of_their_own_before_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.setenv("DRY_RUN", "1")
    study = study_of(tmp_path, timing={"steps": 20}, slurm={"gpus-per-node": 1})
    submit(study, runs_of(study), tmp_path / "study.yaml", tmp_path, flags())
    _, timing, report = capsys.readouterr().out.splitlines()
    assert (
        "--timing-only --no-report" in timing
        and "--gpus-per-node=1" in timing
        and "--dependency=afterany:JOB" in timing
    )
    assert "--report-only" in report and "--dependency=afterany:JOB" in report


def test_every_job_gets_the_studys_options_and_the_commands_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.setenv("DRY_RUN", "1")
    study = study_of(tmp_path, timing={"steps": 20}, slurm={"account": "mine", "time": "1:00:00"})

    def jobs(*words: str) -> list[str]:
        submit(study, runs_of(study), tmp_path / "study.yaml", tmp_path, flags(*words))
        return capsys.readouterr().out.splitlines()

    whole = jobs("--any-code", "--keep-checkpoints", "--cold")
    assert len(whole) == 3 and all("--account=mine --time=1:00:00" in job for job in whole)
    passed = "--any-code --keep-checkpoints --cold"
    assert all(passed in job for job in whole[1:]) and passed in (tmp_path / "slurm/runs.sbatch").read_text()
    assert [job.partition("--job-name=study-")[2].split()[0] for job in jobs("--only", "topk")] == ["runs", "report"]
    (timing,) = jobs("--timing-only", "--no-report", "--only", "topk")
    assert "--only topk --timing-only --no-report" in timing and "--array" not in timing
    assert [job for job in jobs("--no-report") if "--report-only" in job] == []
    with pytest.raises(CompeteError, match="--jobs: a job of --slurm trains one run"):
        jobs("--jobs", "2")


def test_a_dry_run_submits_nothing(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.setenv("DRY_RUN", "1")
    monkeypatch.setenv("PATH", "/nowhere")
    submit(study, runs_of(study), tmp_path / "study.yaml", tmp_path, flags())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(line.startswith("sbatch --parsable ") for line in lines)


def test_without_sbatch_the_way_out_is_named(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(CompeteError, match="there is no sbatch here; DRY_RUN=1"):
        submit(study, runs_of(study), tmp_path / "study.yaml", tmp_path, flags())


def test_a_task_trains_its_line_of_the_list(tmp_path: Path) -> None:
    echo = [sys.executable, "-c", "import sys; print(sys.argv[1:])"]
    script = write_array(tmp_path, "runs", ["topk/seed-1", "paper/seed-1"], echo)
    done = subprocess.run(["bash", str(script)], env={"SLURM_ARRAY_TASK_ID": "1", "PATH": "/usr/bin:/bin"}, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(["--only", "paper/seed-1", "--jobs", "1", "--no-report"])
