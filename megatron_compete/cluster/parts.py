"""One job of a submission: what Slurm is asked for, and what its run folder holds."""

from dataclasses import dataclass
from pathlib import Path

from megatron_compete.cluster.pretrain_job import recipe_text, resolve
from megatron_compete.cluster.queue import ask_queue
from megatron_compete.cluster.run_folder import COMMAND, RECIPE, SCRIPT, SETTINGS, Contents, RunFolder
from megatron_compete.cluster.sbatch import Job, batch_script
from megatron_compete.cluster.settings import Settings
from megatron_compete.cluster.snapshot import Snapshot
from megatron_compete.cluster.tool_jobs import tool_command
from megatron_compete.recipe import Recipe, shell_line


@dataclass(frozen=True)
class Part:
    """A job, ready to be written and submitted."""

    job: Job
    folder: RunFolder
    contents: Contents
    recipe: Recipe | None = None
    """Resolved, of a training job."""

    def in_queue(self) -> str | None:
        """The queue's state of the latest submission, None where it is over or there was none."""
        job_id = self.folder.job_id
        jobs = ask_queue([job_id]).jobs if job_id is not None else {}
        return jobs[job_id].state if job_id in jobs else None


def pretrain_part(recipe: Recipe, run: RunFolder, nodes: int, settings: Settings, snapshot: Snapshot) -> Part:
    """A training job; the recipe is resolved in place.

    Raises:
        CompeteError: see `resolve`.
    """
    settings = settings.with_gpus_of(recipe.launch)
    resolve(recipe, run.path, nodes, settings)
    job = Job("pretrain", run.path, nodes, settings, (), Path.cwd())
    files = {RECIPE: recipe_text(recipe), COMMAND: shell_line(recipe.command(), {}) + "\n"}
    return Part(job, run, Contents(files | _common(job), snapshot), recipe)


def tool_part(kind: str, words: list[str], run: RunFolder, nodes: int, settings: Settings, snapshot: Snapshot) -> Part:
    """A job of one of the tools."""
    job = Job(kind, run.path, nodes, settings, tuple(words), Path.cwd())
    files = {COMMAND: tool_command(kind, words, run / "code")}
    return Part(job, run, Contents(files | _common(job), snapshot))


def _common(job: Job) -> dict[str, str]:
    return {SETTINGS: job.settings.text(), SCRIPT: batch_script(job)}
