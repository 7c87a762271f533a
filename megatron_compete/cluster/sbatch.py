"""Slurm's side of a submission: the batch script, and `sbatch`."""

import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from megatron_compete.cluster.settings import Settings, split_words
from megatron_compete.cluster.times import limit_seconds
from megatron_compete.common.errors import CompeteError

KINDS = ("preprocess", "pretrain", "convert", "evaluate")
"""Kinds of jobs, in the order of a chain; each has its script in slurm/."""


@dataclass(frozen=True)
class Job:
    """What is asked of Slurm, and what runs."""

    kind: str
    run: Path
    """The run folder, absolute."""
    nodes: int
    settings: Settings
    arguments: tuple[str, ...]
    """Of slurm/KIND.sbatch; it reads the recipe and the settings from the run folder."""
    work_folder: Path
    """Where relative paths begin: the folder that the job was submitted from."""

    @property
    def name(self) -> str:
        """The job's name in the queue."""
        parent = f"{self.run.parent.name}-" if self.run.name[:1].isdigit() else ""  # 2-pretrain says little alone
        return f"{parent}{self.run.name}"


def batch_script(job: Job) -> str:
    """`submit.sbatch`: what Slurm is asked for, the job's variables, and the script of its kind from the snapshot."""
    header = "\n".join(f"#SBATCH {shlex.quote(option)}" for option in _options(job))
    arguments = "".join(f" {shlex.quote(argument)}" for argument in job.arguments)
    return f"""#!/bin/bash
{header}
# Written by megatron-compete submit. `sbatch {shlex.quote(str(job.run / "submit.sbatch"))}` runs the job again with the same
# recipe, settings (cluster.env) and code; a job that is finished ends at once.
export COMPETE_RUN={shlex.quote(str(job.run))}
export PYTHONPATH="$COMPETE_RUN/code${{PYTHONPATH:+:$PYTHONPATH}}"
exec bash "$COMPETE_RUN/code/slurm/{job.kind}.sbatch"{arguments}
"""


def _options(job: Job) -> list[str]:
    settings = job.settings
    options = [
        f"--job-name={job.name}",
        f"--nodes={job.nodes}",
        f"--ntasks-per-node={settings.tasks_per_node}",
        f"--chdir={job.work_folder}",
        f"--output={job.run}/logs/%j.log",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:TERM@{signal_seconds(settings)}",
    ]
    if settings.gpus_per_node:
        options.append(f"--gpus-per-node={settings.gpus_per_node}")
    for option, name in (
        ("cpus-per-task", "CPUS_PER_TASK"), ("time", "TIME"), ("account", "ACCOUNT"), ("partition", "PARTITION"), ("qos", "QOS"),
    ):  # fmt: skip
        if settings.get(name) is not None:
            options.append(f"--{option}={settings.get(name)}")
    return options + split_words("COMPETE_SBATCH", settings.get("SBATCH") or "")


def signal_seconds(settings: Settings) -> int:
    """How long before its time limit a job is told to stop.

    Raises:
        CompeteError: the time limit leaves no time before that.
    """
    seconds = settings.number("SIGNAL_SECONDS") or 0
    time = settings.get("TIME")
    limit = None if time is None else limit_seconds(time)
    if limit is not None and limit <= seconds:
        raise CompeteError(
            f"--time {time} is over before COMPETE_SIGNAL_SECONDS={seconds} leave the job any: give more time, or fewer "
            "seconds in cluster.env"
        )
    return seconds


def check_sbatch() -> None:
    """Raise a `CompeteError` where there is no sbatch."""
    if shutil.which("sbatch") is None:
        raise CompeteError("sbatch is not on PATH: submit on a login node of the cluster, or look with --dry-run")


def submit(script: Path, dependency: str | None) -> str:
    """Hand a batch script to Slurm.

    Args:
        dependency: as sbatch's --dependency takes it; a job whose dependency cannot be met is cancelled.
    Returns:
        The job's id.
    Raises:
        CompeteError: Slurm refuses, in its own words, or did not say in time whether it took the job.
    """
    flags = [] if dependency is None else [f"--dependency={dependency}", "--kill-on-invalid-dep=yes"]
    done = subprocess.run(["sbatch", "--parsable", *flags, str(script)], capture_output=True, text=True)
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        reason = " ".join(line.removeprefix("sbatch: ").removeprefix("error: ") for line in said)
        if "timed out" in reason:
            reason += " (the job may be in the queue all the same: look with squeue before you submit again)"
        raise CompeteError(f"sbatch {script}: {reason}")
    return done.stdout.strip().split(";")[0]
