"""What has become of a run, from its folder and Slurm's queue.

    pending     waits in the queue for its first start       finished   has done all it was to do
    requeued    waits for another start                      stopped    told to stop, and not in the queue any more
    starting    has nodes, and has not logged a step yet     refused    bad input; trying again cannot help
    running     logs steps                                   failed     gave up, or ended without a word
    stalled     has not logged a step for a long time        new        never submitted

Nothing here needs torch, and every file may be missing or cut off.
"""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from megatron_compete.cluster.env_file import read_env_file
from megatron_compete.cluster.queue import Queue, QueuedJob
from megatron_compete.cluster.run_folder import ATTEMPTS, FINISHED, JOB, RECIPE, REPORT, SCRIPT, SETTINGS, RunFolder
from megatron_compete.common.errors import CompeteError
from megatron_compete.launch.recipe import read_recipe
from megatron_compete.launch.run_files import read_steps

TRACKER = "latest_checkpointed_iteration.txt"
STALLED_INTERVALS = 10
"""Log intervals without a line after which a run counts as stalled, and the least seconds: saving and evaluation take
their time between two lines."""
STALLED_SECONDS = 300.0
SIGNAL_SECONDS = 300
RUNNING = "attempt.running"


@dataclass(frozen=True)
class Attempt:
    """A line of attempts.tsv: one start of the job."""

    number: int
    job_id: str
    begin: float
    end: float
    nodes: str
    outcome: str
    exit_code: str
    failed_node: str
    reason: str

    @property
    def seconds(self) -> float:
        """How long it had its nodes."""
        return self.end - self.begin

    @property
    def why(self) -> str | None:
        """What the batch script found to be the reason: its first failure, or what the trainer said."""
        return self.reason if self.reason not in ("", "-") else None


@dataclass
class RunStatus:
    """A run at a moment. None is what is not known, or does not apply."""

    run: str
    kind: str
    state: str
    reason: str | None = None
    job_id: str | None = None
    nodes: str | None = None
    iteration: int | None = None
    train_iters: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    seconds_per_step: float | None = None
    consumed_tokens: int | None = None
    checkpoint: int | None = None
    checkpoint_age_seconds: float | None = None
    progress_age_seconds: float | None = None
    repeated_steps: int = 0
    """Steps that were trained again because they came after the last checkpoint; as exact as --log-interval."""
    restarts: int = 0
    failures: list[str] = field(default_factory=list)
    used_seconds: float = 0.0
    limit_left_seconds: float | None = None
    training_left_seconds: float | None = None
    """For the steps alone, at the present pace."""
    requeues_left: int | None = None
    """Further starts that the rest of the training needs at least, with this time limit."""
    report: str | None = None
    """The page that `megatron-compete report` wrote of it."""


def runs_in(folder: Path) -> list[Path]:
    """The run folders that a path means: itself, or the jobs of a chain in their order.

    Raises:
        CompeteError: it is neither.
    """
    if _is_run(folder):
        return [folder]
    jobs = sorted((path for path in folder.glob("*/") if _is_run(path)), key=_chain_order)
    if not jobs:
        raise CompeteError(f"{folder} is no run folder, and holds none: give one that `megatron-compete submit` wrote")
    return jobs


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in (SCRIPT, JOB, RECIPE, ATTEMPTS, "progress.json"))


def _chain_order(path: Path) -> tuple[int, str]:
    number = path.name.partition("-")[0]
    return (int(number) if number.isdecimal() else 1 << 30, path.name)


def read_status(folder: Path, queue: Queue, now: float | None = None) -> RunStatus:
    """The state of one run; `queue` must have been asked for its job."""
    now = time.time() if now is None else now
    facts = _Facts(folder, queue, now)
    status = RunStatus(run=str(folder), kind=facts.kind, state="new", job_id=facts.job_id)
    _add_progress(status, facts)
    _add_attempts(status, facts)
    status.state, status.reason = facts.state()
    status.report = str(folder / REPORT) if (folder / REPORT).is_file() else None
    if facts.job is not None:
        status.nodes = facts.job.nodes or None
        status.limit_left_seconds = None if facts.job.waits else facts.job.left_seconds
    _add_rest(status, facts)
    return status


class _Facts:
    """What the files and the queue hold."""

    def __init__(self, folder: Path, queue: Queue, now: float) -> None:
        self.folder, self.now = folder, now
        self.job_id = RunFolder(folder).job_id
        self.job: QueuedJob | None = queue.jobs.get(self.job_id or "")
        self.queue_is_known = queue.known
        self.kind = str(_json(folder / JOB).get("kind") or "pretrain")
        self.attempts = read_attempts(folder / ATTEMPTS)
        self.begun = _begun(folder / RUNNING)
        self.progress = _json(folder / "progress.json")
        self.steps = read_steps(folder)
        self.recipe = _recipe(folder / RECIPE)
        self.settings = _settings(folder / SETTINGS)

    def state(self) -> tuple[str, str | None]:
        """State, and the reason for it."""
        if (self.folder / FINISHED).exists():
            return "finished", None
        if self.job is not None:
            return self._queued(self.job)
        if self.begun is not None and not self.queue_is_known:
            return self._running()[0], "Slurm cannot be asked here"
        if self.begun is not None:
            return "failed", "ended without a word: cancelled, or its nodes died; `sbatch` its submit.sbatch goes on"
        if not self.attempts and self.job_id is None:
            return self._without_job()
        if not self.attempts and not self.queue_is_known:
            return "pending", "Slurm cannot be asked here"
        if not self.attempts:
            return "failed", "left the queue before it began: cancelled, or a job before it failed"
        last = self.attempts[-1]
        state = last.outcome if last.outcome in ("finished", "stopped", "refused") else "failed"
        return state, last.why

    def _without_job(self) -> tuple[str, str | None]:
        """No batch script runs it: what the trainer itself has written."""
        said = _text(self.folder / "outcomes" / str(self.progress.get("attempt", 0))).splitlines()
        if said:
            return said[0], " ".join(said[1:]) or None
        return self._running() if self.progress else ("new", None)

    def _queued(self, job: QueuedJob) -> tuple[str, str | None]:
        if job.waits:
            state = "requeued" if self.attempts else "pending"
            return state, job.reason if job.start in ("N/A", "") else f"{job.reason}, expected {job.start}"
        return self._running()

    def _running(self) -> tuple[str, str | None]:
        """A step of this attempt counts, not one of the attempt before."""
        if self.kind != "pretrain":
            return "running", None
        if self.progress.get("attempt") != len(self.attempts) or not self.progress.get("time"):
            return "starting", None
        age = self.now - self.progress["time"]
        interval = (self.progress.get("seconds_per_step") or 0) * self.progress.get("log_interval", 1)
        if age > max(STALLED_INTERVALS * interval, STALLED_SECONDS):
            return "stalled", f"no step logged for {age:.0f} s"
        return "running", None


def _add_progress(status: RunStatus, facts: _Facts) -> None:
    progress = facts.progress
    for name in ("iteration", "train_iters", "loss", "tokens_per_second", "seconds_per_step", "consumed_tokens"):
        setattr(status, name, progress.get(name))
    if status.train_iters is None:
        status.train_iters = _whole(facts.recipe.get("train-iters"))
    status.repeated_steps = repeated_steps(facts.steps, int(progress.get("log_interval") or 1))
    if "time" in progress:
        status.progress_age_seconds = facts.now - progress["time"]
    tracker = Path(str(facts.recipe.get("save") or facts.folder / "checkpoints")) / TRACKER
    try:
        status.checkpoint = int(tracker.read_text())
        status.checkpoint_age_seconds = facts.now - tracker.stat().st_mtime
    except (OSError, ValueError):
        status.checkpoint = progress.get("checkpoint")


def repeated_steps(steps: list[dict[str, Any]], log_interval: int) -> int:
    """Steps that the curve has more than once: each attempt's from where it began to where the one before had come."""
    iterations = [_whole(step.get("iteration")) for step in steps]
    known = [iteration for iteration in iterations if iteration is not None]
    return sum(max(0, before - after + log_interval) for before, after in pairwise(known) if after <= before)


def _add_attempts(status: RunStatus, facts: _Facts) -> None:
    status.restarts = max(0, len(facts.attempts) - (facts.begun is None))
    status.used_seconds = sum(attempt.seconds for attempt in facts.attempts)
    if facts.job is not None and not facts.job.waits:
        status.used_seconds += facts.job.used_seconds
    status.failures = [
        f"attempt {attempt.number}: {attempt.why or f'exit code {attempt.exit_code}'}"
        for attempt in facts.attempts
        if attempt.outcome not in ("finished", "stopped")
    ]


def _add_rest(status: RunStatus, facts: _Facts) -> None:
    """Time to the end of training, and in how many starts."""
    if status.state in ("finished", "refused") or status.train_iters is None or not status.seconds_per_step:
        return
    steps = max(0, status.train_iters - (status.iteration or 0))
    status.training_left_seconds = steps * status.seconds_per_step
    if facts.job is None:
        return
    limit = facts.job.limit_seconds
    if limit is None:
        status.requeues_left = 0
        return
    reserve = int(facts.settings.get("COMPETE_SIGNAL_SECONDS") or SIGNAL_SECONDS)
    usable = max(1, limit - reserve)
    here = 0 if facts.job.waits else max(0, (facts.job.left_seconds or 0) - reserve)
    starts = math.ceil(max(0.0, status.training_left_seconds - here) / usable)
    status.requeues_left = max(0, starts - 1) if facts.job.waits else starts


def read_attempts(path: Path) -> list[Attempt]:
    """Lines of attempts.tsv; one that was cut off is left out."""
    attempts = []
    for line in _text(path).splitlines():
        parts = line.split("\t")
        try:
            number, job_id, begin, end, *rest = parts
            attempts.append(Attempt(int(number), job_id, float(begin), float(end), *(rest + [""] * 5)[:5]))
        except ValueError:
            continue
    return attempts


def _begun(path: Path) -> float | None:
    """When the attempt began that is not over, as far as its batch script could say."""
    parts = _text(path).split("\t")
    return float(parts[1]) if len(parts) > 1 and parts[1].strip().isdecimal() else None


def _recipe(path: Path) -> Mapping[str, Any]:
    try:
        return read_recipe(path).arguments
    except CompeteError:
        return {}


def _settings(path: Path) -> dict[str, str]:
    try:
        return read_env_file(path) if path.exists() else {}
    except CompeteError:
        return {}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_text(path))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | str) and str(value).isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
