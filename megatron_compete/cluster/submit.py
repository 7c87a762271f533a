"""`megatron-compete submit`: a recipe, or a chain of jobs, as a run folder that Slurm runs."""

import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_compete.cluster.chain import plan_chain, submit_chain, write_chain
from megatron_compete.cluster.chain_file import read_chain
from megatron_compete.cluster.layout_check import check_layout
from megatron_compete.cluster.planned_job import PlannedJob, plan_pretrain, queued_jobs
from megatron_compete.cluster.pretrain_job import check_files
from megatron_compete.cluster.run_folder import COMMAND, RECIPE, SCRIPT, RunFolder
from megatron_compete.cluster.sbatch import check_sbatch, submit
from megatron_compete.cluster.settings import Settings, find_settings, settings_to_keep
from megatron_compete.cluster.snapshot import Snapshot, take_snapshot
from megatron_compete.common.command_line import Command, check_options, option
from megatron_compete.common.errors import CompeteError
from megatron_compete.common.local_paths import check_local
from megatron_compete.launch.environment import Launcher
from megatron_compete.launch.recipe import read_recipe

SETTING_FLAGS = {
    "time": "COMPETE_TIME",
    "launcher": "COMPETE_LAUNCHER",
    "gpus_per_node": "COMPETE_GPUS_PER_NODE",
    "tasks_per_node": "COMPETE_TASKS_PER_NODE",
    "container": "COMPETE_IMAGE",
    "account": "COMPETE_ACCOUNT",
    "partition": "COMPETE_PARTITION",
    "qos": "COMPETE_QOS",
    "max_failures": "COMPETE_MAX_FAILURES",
}
"""Flags that stand for settings."""

OF_ONE_JOB = ("nodes", "time", "gpus_per_node", "tasks_per_node")
"""Flags that a chain's sections have, each for its job."""


@dataclass(frozen=True)
class SubmitOptions:
    """The verb's own flags."""

    recipe: Path | None = option(None, metavar="FILE", help="train this recipe, see examples/")
    chain: Path | None = option(None, metavar="FILE", help="submit the jobs of this file, see examples/chain_demo.yaml")
    nodes: int | None = option(None, help="nodes of the job")
    run: Path | None = option(
        None, metavar="DIR", help="run folder, or a chain's folder (default: runs/NAME_OF_THE_FILE)"
    )
    cluster: Path | None = option(None, metavar="FILE", help="settings of the cluster")
    time: str | None = option(
        None, metavar="LIMIT", help="time limit as Slurm takes it; the job is requeued until it is finished"
    )
    container: str | None = option(
        None, metavar="IMAGE", help="run in this image: a .sif by Apptainer, any other by Pyxis"
    )
    launcher: Launcher | None = option(None, help="what starts the ranks (default: torchrun)")
    gpus_per_node: str | None = option(None, metavar="N", help="0 on nodes without GPUs")
    tasks_per_node: str | None = option(None, metavar="N", help="ranks of a node (default: one a GPU)")
    account: str | None = option(None, metavar="NAME", help="as sbatch takes it")
    partition: str | None = option(None, metavar="NAME", help="as sbatch takes it")
    qos: str | None = option(None, metavar="NAME", help="as sbatch takes it")
    dependency: str | None = option(None, metavar="WHAT", help="as sbatch takes it, e.g. afterok:123")
    max_failures: str | None = option(
        None, metavar="N", help="failed attempts in a row after which the job gives up (default: 3)"
    )
    update: bool = option(False, help="go on in a run folder with other settings; what it had goes to earlier/")
    no_check: bool = option(False, help="do not ask Megatron whether it would take the job")
    dry_run: bool = option(False, help="write the run folder and show its script, but submit nothing")
    overrides: tuple[str, ...] = option((), hidden=True)

    def __post_init__(self) -> None:
        check_options(self)
        if (self.recipe is None) == (self.chain is None):
            raise CompeteError("submit takes one of --recipe FILE and --chain FILE")


def run_submit(options: SubmitOptions) -> None:
    """Check, write, submit, and say where to look.

    Raises:
        CompeteError: what keeps the job from being submitted; nothing was written then, unless Slurm itself refused.
    """
    if not options.dry_run:
        check_sbatch()
    settings = cluster_settings(options)
    if options.chain is not None:
        _submit_chain(options.chain, options, settings)
    elif options.recipe is not None:
        _submit_recipe(options.recipe, options, settings)


def note_on_code(snapshot: Snapshot) -> None:
    """Say what the job's code does not have."""
    missing = snapshot.git.untracked() if snapshot.git is not None else ()
    if missing:
        print(f"note: not in the job's code, because git does not track them: {', '.join(missing)}", file=sys.stderr)


def cluster_settings(options: SubmitOptions) -> dict[str, str]:
    """Settings from the file, with the command line's over them."""
    path = find_settings(options.cluster)
    values = {} if path is None else settings_to_keep(path)
    given = {key: str(getattr(options, flag)) for flag, key in SETTING_FLAGS.items() if getattr(options, flag) is not None}  # fmt: skip
    if options.container is not None and values.get("COMPETE_SOFTWARE", "venv") == "venv":
        given["COMPETE_SOFTWARE"] = "apptainer" if options.container.endswith(".sif") else "pyxis"
    return with_software(values | given)


def with_software(values: Mapping[str, str]) -> dict[str, str]:
    """Settings that say where the job's Python is.

    Raises:
        CompeteError: no image, or no virtual environment, or one that is not there.
    """
    software = Settings.of(values).get("SOFTWARE")
    found = dict(values)
    if software == "venv":
        venv = found.setdefault("COMPETE_VENV", sys.prefix)
        if not os.access(Path(venv, "bin", "python"), os.X_OK):
            raise CompeteError(
                f"COMPETE_VENV={venv}: no bin/python in it, name the virtual environment that nodes see too"
            )
        return found
    image = found.get("COMPETE_IMAGE")
    if not image:
        raise CompeteError(f"COMPETE_SOFTWARE={software} without an image: give --container or COMPETE_IMAGE")
    if image.endswith((".sif", ".sqsh")) and not Path(image).is_file():
        raise CompeteError(f"--container {image}: no such file")
    return found


def run_path(given: Path | None, source: Path) -> Path:
    """The run folder of a recipe's or a chain's file."""
    check_local("--run", given)
    return (given or Path("runs") / source.stem).expanduser().absolute()


def _submit_recipe(file: Path, options: SubmitOptions, values: dict[str, str]) -> None:
    if options.nodes is None or options.nodes < 1:
        raise CompeteError(f"--nodes {'is missing' if options.nodes is None else options.nodes}: give 1 or more")
    recipe = read_recipe(file)
    recipe.override(options.overrides)
    run = RunFolder(run_path(options.run, file))
    planned = plan_pretrain(recipe, run, options.nodes, Settings.of(values), take_snapshot())
    check_files(recipe)
    if _is_over(planned):
        return
    run.check(planned.contents, options.update)
    if not options.no_check:
        _check_layout(planned)
    run.write(planned.contents, options.update)
    note_on_code(planned.contents.snapshot)
    if options.dry_run:
        _show(planned)
        return
    job_id = submit(run / SCRIPT, options.dependency)
    run.record_submission(job_id, planned.job.kind)
    _say(planned, job_id)


def _submit_chain(file: Path, options: SubmitOptions, values: dict[str, str]) -> None:
    for name in OF_ONE_JOB:
        if getattr(options, name) is not None:
            flag = name.replace("_", "-")
            raise CompeteError(f"--{flag} is one job's: write {flag} into the sections of --chain {file}")
    folder = run_path(options.run, file)
    RunFolder(folder)  # its path is fit for Slurm
    snapshot = take_snapshot()
    planned_jobs = plan_chain(read_chain(file, folder), folder, values, list(options.overrides), snapshot)
    if not options.no_check:
        for planned in planned_jobs:
            if planned.recipe is not None and not planned.folder.is_finished:
                _check_layout(planned)
    queued = queued_jobs(planned_jobs)
    write_chain(planned_jobs, queued, folder, file, options.update)
    note_on_code(snapshot)
    if options.dry_run:
        for planned in planned_jobs:
            _show(planned)
        return
    submit_chain(planned_jobs, queued, options.dependency, print)
    print(f"chain    {folder}\nlook     megatron-compete status {folder}")


def _is_over(planned: PlannedJob) -> bool:
    """Whether there is nothing to submit.

    Raises:
        CompeteError: its job waits or runs, or whether it does cannot be told.
    """
    if planned.folder.is_finished:
        print(f"{planned.folder.path} is finished: nothing to do (another --run trains anew)")
        return True
    job = queued_jobs([planned])[0]
    if job is not None:
        raise CompeteError(
            f"--run {planned.folder.path}: its job {job.job_id} is in the queue ({job.state}): scancel it first, or choose "
            "another --run"
        )
    return False


def _check_layout(planned: PlannedJob) -> None:
    settings = planned.job.settings
    pythons = [sys.executable]
    if settings.get("SOFTWARE") == "venv":
        pythons.append(f"{settings.get('VENV')}/bin/python")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, RECIPE)
        file.write_text(planned.contents.files[RECIPE])
        note = check_layout(file, planned.job.nodes, settings.tasks_per_node, pythons)
    if note:
        print(f"note: {note}", file=sys.stderr)


def _show(planned: PlannedJob) -> None:
    print(f"{planned.folder.path} is written, nothing is submitted. {COMMAND}:\n")
    print(planned.contents.files[COMMAND])
    print(f"{SCRIPT}:\n\n{planned.contents.files[SCRIPT]}")


def _say(planned: PlannedJob, job_id: str) -> None:
    run, job = planned.folder.path, planned.job
    print(f"job {job_id} is submitted: {job.nodes} nodes of {job.settings.tasks_per_node} ranks")
    for name, value in {
        "run": str(run),
        "look": f"megatron-compete status {run}",
        "log": f"tail -F {run}/logs/{job_id}*.log",
        "stop": f"scancel {job_id}",
        "again": f"sbatch {run / SCRIPT}",
    }.items():
        print(f"{name:<8} {value}")


main = Command(
    name="submit",
    description="""Write a run folder (resolved recipe, command, settings, git revision, code, batch script) and submit it
    to Slurm. What can be refused is refused here and not in the queue. Settings of the cluster come from --cluster, else
    $COMPETE_CLUSTER, else ./cluster.env, else ~/.config/megatron-compete/cluster.env (slurm/cluster.env.example explains
    them); flags go over the file. Anything else overrides the recipe by name, as with pretrain. The same command again
    submits the same folder again, or the jobs of a chain that are not finished.""",
    example="--recipe examples/competesmoe_154m.yaml --nodes 2 --time 24:00:00 --data-path /shared/data/train",
    options=SubmitOptions,
    run=run_submit,
    takes_overrides=True,
)
