"""Jobs that follow one another: raw text to data, a trained model, a Hugging Face folder, its evaluation.

    preprocess:                        # any of the four jobs, in this order
      tokenizer: {vocab-size: 32000}   # train one first; or name one under arguments
      arguments: {input: corpus/*.jsonl, append-eod: true}
    pretrain:
      recipe: examples/moe_30b_a3b.yaml
      nodes: 16
      time: 24:00:00
      arguments: {train-iters: 1000}
    convert: {time: "30"}
    evaluate:
      arguments: {tasks: hellaswag}

Each job has a run folder of its own in the chain's: 1-preprocess, 2-pretrain, 3-convert, 4-evaluate. Data, tokenizer,
checkpoint and Hugging Face folder go from one job to the next unless its arguments name others. Relative paths begin
where the command is run; `{chain}` in a value is the chain's folder.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from megatron_compete.cluster.chain_file import (
    PartSection,
    PreprocessSection,
    PretrainSection,
    nodes_of,
    section_settings,
)
from megatron_compete.cluster.planned_job import PlannedJob, plan_pretrain, plan_tool
from megatron_compete.cluster.pretrain_job import check_files, checkpoint_folder
from megatron_compete.cluster.queue import QueuedJob
from megatron_compete.cluster.run_folder import CODE, PRIVATE, SCRIPT, RunFolder
from megatron_compete.cluster.sbatch import KINDS, submit
from megatron_compete.cluster.settings import Settings
from megatron_compete.cluster.snapshot import Snapshot
from megatron_compete.cluster.tool_jobs import (
    Flow,
    convert_arguments,
    evaluate_arguments,
    flow_into_recipe,
    preprocess_arguments,
)
from megatron_compete.common.errors import CompeteError
from megatron_compete.common.files import write_whole
from megatron_compete.launch.recipe import read_recipe

CHAIN = "chain.yaml"
"""Copy of the chain's file in its folder; tells a chain's folder from a run's."""


def plan_chain(
    sections: Mapping[str, PartSection],
    folder: Path,
    settings: Mapping[str, str],
    overrides: list[str],
    snapshot: Snapshot,
) -> list[PlannedJob]:
    """The jobs of a chain.

    Args:
        settings: of the cluster, as read.
        overrides: of the pretrain job's recipe.
    Raises:
        CompeteError: what a job lacks, or names and is not there.
    """
    if overrides and "pretrain" not in sections:
        raise CompeteError(f"{overrides[0]} overrides a recipe, and the chain has no pretrain: take it out")
    flow, planned_jobs = Flow(), []
    for kind, section in sections.items():
        run = RunFolder(folder / f"{KINDS.index(kind) + 1}-{kind}")
        own, nodes = section_settings(kind, section, settings), nodes_of(kind, section)
        if isinstance(section, PretrainSection):
            planned = _pretrain(section, run, nodes, own, flow, overrides, snapshot)
        else:
            check_mpi(kind, nodes, own)
            planned = plan_tool(kind, _words(kind, section, run.path, flow), run, nodes, own, snapshot)
        planned_jobs.append(planned)
    return planned_jobs


def _pretrain(
    section: PretrainSection, run: RunFolder, nodes: int, settings: Settings, flow: Flow, overrides: list[str], snapshot: Snapshot
) -> PlannedJob:  # fmt: skip
    if section.recipe is None:
        raise CompeteError("pretrain: recipe is missing: name a recipe's file, see examples/")
    recipe = read_recipe(Path(section.recipe))
    recipe.arguments.update(section.arguments)
    recipe.override(overrides)
    made = bool(flow.data) and "data-path" not in recipe.arguments
    flow_into_recipe(recipe, flow)
    planned = plan_pretrain(recipe, run, nodes, settings, snapshot)
    if not made:
        check_files(recipe)
    flow.checkpoint = checkpoint_folder(recipe)
    return planned


def _words(kind: str, section: PartSection, run: Path, flow: Flow) -> list[str]:
    if isinstance(section, PreprocessSection):
        return preprocess_arguments(section.arguments, section.tokenizer, run, flow)
    return (convert_arguments if kind == "convert" else evaluate_arguments)(section.arguments, run, flow)


def check_mpi(kind: str, nodes: int, settings: Settings) -> None:
    """Raise a `CompeteError` where tasks of a tool would not know of one another."""
    tasks = nodes * settings.tasks_per_node
    if kind == "preprocess" and tasks > 1 and settings.get("MPI") is None and settings.get("LAUNCHER") != "mpirun":
        raise CompeteError(
            f"preprocess: {tasks} tasks need MPI: set COMPETE_MPI in cluster.env (srun --mpi=list says what there is), "
            "COMPETE_LAUNCHER=mpirun, or nodes: 1 and tasks-per-node: 1"
        )


def write_chain(
    planned_jobs: list[PlannedJob], queued: list[QueuedJob | None], folder: Path, source: Path, update: bool
) -> None:
    """Write the run folder of every job that is not finished.

    Args:
        queued: what waits or runs of each, in Slurm's queue (`queued_jobs`).
    Raises:
        CompeteError: a folder of another job (see `RunFolder.write`), before any of them is touched where it shows.
    """
    pending = [planned for planned, job in zip(planned_jobs, queued) if not planned.folder.is_finished and job is None]
    for planned in pending:
        planned.folder.check(planned.contents, update)
    folder.mkdir(parents=True, exist_ok=True)
    for planned in pending:
        planned.folder.write(planned.contents, update)
    write_whole(folder / CHAIN, source.read_bytes(), mode=PRIVATE)


def submit_chain(
    planned_jobs: list[PlannedJob], queued: list[QueuedJob | None], dependency: str | None, say: Callable[[str], None]
) -> None:
    """Submit each job behind the one before it; what is finished or in the queue is left as it is.

    Args:
        queued: what waits or runs of each, in Slurm's queue (`queued_jobs`).
        dependency: of the first job that is submitted, as sbatch takes it.
    Raises:
        CompeteError: Slurm refuses one; those before it stay in the queue, and the same command goes on from there.
    """
    for planned, job in zip(planned_jobs, queued):
        label = planned.folder.path.name
        if planned.folder.is_finished:
            say(f"{label}: finished already{_with_other_settings(planned)}")
            continue
        if job is not None:
            job_id = job.job_id
            say(f"{label}: job {job_id} is in the queue ({job.state})")
        else:
            job_id = submit(planned.folder / SCRIPT, dependency)
            planned.folder.record_submission(job_id, planned.job.kind)
            say(f"{label}: job {job_id}" + (f" ({dependency})" if dependency else ""))
        dependency = f"afterok:{job_id}"


def _with_other_settings(planned: PlannedJob) -> str:
    """A finished job is not run again because the chain's file has changed; code may have."""
    differing = [name for name in planned.folder.differences(planned.contents) if not name.startswith((CODE, SCRIPT))]
    return f" ({', '.join(differing)} were others: to run it anew, remove its folder)" if differing else ""
