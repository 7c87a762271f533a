"""What Slurm's queue says of jobs."""

import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from megatron_compete.cluster.times import limit_seconds
from megatron_compete.errors import CompeteError

FORMAT = "%A|%T|%r|%M|%l|%L|%S|%N"
"""Id, state, reason, time used, limit, time left, start, nodes."""
TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class QueuedJob:
    """A job that Slurm has not let go of."""

    job_id: str
    state: str
    """Slurm's word: PENDING, RUNNING, COMPLETING, ..."""
    reason: str
    """Why it waits; `None` where it runs."""
    used_seconds: int
    limit_seconds: int | None
    left_seconds: int | None
    """To the limit; None where there is none."""
    start: str
    """When it began, or is expected to; `N/A` where Slurm does not know."""
    nodes: str

    @property
    def waits(self) -> bool:
        """Whether it has no nodes yet."""
        return self.state == "PENDING"


@dataclass(frozen=True)
class Queue:
    """The jobs among those asked for that are in the queue."""

    known: bool
    """Whether Slurm could be asked."""
    jobs: dict[str, QueuedJob]


def ask_queue(job_ids: Iterable[str]) -> Queue:
    """Ask `squeue` once for all of these; jobs that are over are not in the answer."""
    wanted = sorted(set(job_ids))
    if not wanted or shutil.which("squeue") is None:
        return Queue(known=not wanted, jobs={})
    command = ["squeue", "--noheader", "--jobs", ",".join(wanted), "--format", FORMAT]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        return Queue(known=False, jobs={})
    if answer.returncode != 0:  # a single job that is over is an error to squeue; so is a controller that is down
        return Queue(known="Invalid job id" in answer.stderr, jobs={})
    jobs = (_parse(line) for line in answer.stdout.splitlines() if line.count("|") == FORMAT.count("|"))
    return Queue(known=True, jobs={job.job_id: job for job in jobs})


def _parse(line: str) -> QueuedJob:
    job_id, state, reason, used, limit, left, start, nodes = line.split("|")
    return QueuedJob(job_id, state, reason, _seconds(used) or 0, _seconds(limit), _seconds(left), start, nodes)


def _seconds(text: str) -> int | None:
    """squeue writes `M:SS`, `H:MM:SS`, `D-HH:MM:SS`, or words."""
    try:
        return limit_seconds(text)
    except CompeteError:  # 0:00, INVALID, NOT_SET
        return 0 if text.strip("0:") == "" else None
