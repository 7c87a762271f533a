"""A study as Slurm job arrays: a task trains one run; what others start from comes first; the report comes last."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from megatron_compete.common.errors import CompeteError
from megatron_compete.launch.recipe import Value
from megatron_compete.study.command import StudyOptions
from megatron_compete.study.config import Slurm, Study
from megatron_compete.study.grid import Run

PASSED_ON = ("any_code", "keep_checkpoints", "cold")
"""Flags that a job gets as they were given."""

SCRIPT = """#!/usr/bin/env bash
# Trains line SLURM_ARRAY_TASK_ID of {list}; written by megatron-compete study.
set -euo pipefail
cd {repository}
run=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {list})
exec {command} --only "$run" --jobs 1 --no-report
"""


def submit(study: Study, runs: list[Run], config: Path, folder: Path, flags: StudyOptions) -> None:
    """Write the arrays' scripts and hand them to sbatch; DRY_RUN=1 prints the commands instead.

    Corpus and environment must lie where all nodes see them. Every job gets the study's options of sbatch.

    Args:
        flags: of the command line; they mean for the jobs what they mean for training here.
    Raises:
        CompeteError: a flag that jobs cannot heed; sbatch is missing or refuses.
    """
    if flags.jobs is not None:
        raise CompeteError(
            "--jobs: a job of --slurm trains one run: bound their number by slurm: {at-once: N} in the study"
        )
    place = folder / "slurm"
    place.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "megatron_compete", "study", "--config", str(config.absolute()), "--out", str(folder.absolute())]  # fmt: skip
    command += [f"--{name.replace('_', '-')}" for name in PASSED_ON if getattr(flags, name)]
    own = sbatch_options(study.slurm)
    previous = None
    groups = {"starts": [run for run in runs if run.is_start], "runs": [run for run in runs if not run.is_start]}
    for name, some in groups.items():
        if some and not flags.timing_only:
            script = write_array(place, name, [run.name for run in some], command)
            width = f"0-{len(some) - 1}" + (f"%{study.slurm.at_once}" if study.slurm.at_once else "")
            options = [f"--array={width}", f"--job-name={study.name}-{name}", f"--output={place}/%x-%a.log"]
            previous = _sbatch([*options, *_after(previous, "afterok"), *own, str(script)])
    if study.timing is not None and (flags.timing_only or not flags.only):
        only = [word for name in flags.only for word in ("--only", name)]
        timing = shlex.join([*command, *only, "--timing-only", "--no-report"])
        options = [f"--job-name={study.name}-timing", f"--output={place}/%x.log", f"--chdir={os.getcwd()}"]
        previous = _sbatch([*options, *_after(previous, "afterany"), *own, f"--wrap={timing}"])
    if not flags.no_report:
        report = shlex.join([*command, "--report-only"])
        options = [f"--job-name={study.name}-report", f"--output={place}/%x.log", f"--chdir={os.getcwd()}"]
        _sbatch([*options, *_after(previous, "afterany"), *own, f"--wrap={report}"])


def write_array(place: Path, name: str, runs: list[str], command: list[str]) -> Path:
    """The array's script and the list of runs that its tasks choose from."""
    listing = place / f"{name}.txt"
    listing.write_text("".join(f"{run}\n" for run in runs))
    script = place / f"{name}.sbatch"
    script.write_text(
        SCRIPT.format(
            list=shlex.quote(str(listing.absolute())), repository=shlex.quote(os.getcwd()), command=shlex.join(command)
        )
    )
    return script


def sbatch_options(slurm: Slurm) -> list[str]:
    """The study's own options for sbatch, `time: "02:00:00"` as `--time=02:00:00`."""
    return [_option(name, value) for name, value in slurm.options.items() if value is not None and value is not False]


def _option(name: str, value: Value) -> str:
    return f"--{name}" if value is True else f"--{name}={value}"


def _after(job: str | None, kind: str) -> list[str]:
    return [f"--dependency={kind}:{job}"] if job else []


def _sbatch(arguments: list[str]) -> str:
    """Submit; the job's number, or the name of a placeholder in a dry run."""
    if os.environ.get("DRY_RUN") == "1":
        print(shlex.join(["sbatch", "--parsable", *arguments]))
        return "JOB"
    try:
        done = subprocess.run(["sbatch", "--parsable", *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        raise CompeteError("--slurm: there is no sbatch here; DRY_RUN=1 prints what would be submitted") from None
    if done.returncode != 0:
        raise CompeteError(f"--slurm: sbatch refuses: {done.stderr.strip()}")
    job = done.stdout.strip().split(";")[0]
    print(f"submitted {job}: {shlex.join(arguments)}")
    return job
