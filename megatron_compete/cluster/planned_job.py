"""One job of a submission: what Slurm is asked for, and what its run folder holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_compete.cluster.pretrain_job import recipe_text, resolve
from megatron_compete.cluster.queue import QueuedJob, ask_queue
from megatron_compete.cluster.run_folder import COMMAND, RECIPE, SCRIPT, SETTINGS, Contents, RunFolder
from megatron_compete.cluster.sbatch import Job, batch_script
from megatron_compete.cluster.settings import Settings
from megatron_compete.cluster.snapshot import Snapshot
from megatron_compete.cluster.tool_jobs import tool_command
from megatron_compete.common.errors import CompeteError
from megatron_compete.launch.recipe import Recipe, shell_line


@dataclass(frozen=True)
class PlannedJob:
    """A job, ready to be written and submitted."""

    job: Job
    folder: RunFolder
    contents: Contents
    recipe: Recipe | None = None
    """Resolved, of a training job."""


def queued_jobs(planned_jobs: Sequence[PlannedJob]) -> list[QueuedJob | None]:
    """What Slurm has in its queue of each job, None where there is nothing or it is finished; Slurm is asked once.

    Raises:
        CompeteError: Slurm cannot be asked about a job: it may be in the queue, and must not be submitted again.
    """
    job_ids = [[] if planned.folder.is_finished else planned.folder.job_ids() for planned in planned_jobs]
    queue = ask_queue(job_id for some in job_ids for job_id in some)
    found = []
    for planned, some in zip(planned_jobs, job_ids):
        found.append(next((queue.jobs[job_id] for job_id in some if job_id in queue.jobs), None))
        if some and found[-1] is None and not queue.known:
            raise CompeteError(
                f"--run {planned.folder.path}: whether its job {some[0]} is still in the queue cannot be told ({queue.why}): try "
                f"again once Slurm answers, or, if you know that it is over, sbatch {planned.folder / SCRIPT}"
            )
    return found


def plan_pretrain(recipe: Recipe, run: RunFolder, nodes: int, settings: Settings, snapshot: Snapshot) -> PlannedJob:
    """A training job; the recipe is resolved in place.

    Raises:
        CompeteError: see `resolve`.
    """
    settings = settings.with_gpus_of(recipe.launch)
    resolve(recipe, run.path, nodes, settings)
    job = Job("pretrain", run.path, nodes, settings, (), Path.cwd())
    files = {RECIPE: recipe_text(recipe), COMMAND: shell_line(recipe.command(), {}) + "\n"}
    return PlannedJob(job, run, Contents(files | _common(job), snapshot), recipe)


def plan_tool(
    kind: str, words: list[str], run: RunFolder, nodes: int, settings: Settings, snapshot: Snapshot
) -> PlannedJob:
    """A job of one of the tools."""
    job = Job(kind, run.path, nodes, settings, tuple(words), Path.cwd())
    files = {COMMAND: tool_command(kind, words, run / "code")}
    return PlannedJob(job, run, Contents(files | _common(job), snapshot))


def _common(job: Job) -> dict[str, str]:
    return {SETTINGS: job.settings.text(), SCRIPT: batch_script(job)}
