"""What Slurm's queue says of jobs. Not to know is an answer of its own: such a job may well be in the queue."""

import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field

from megatron_compete.cluster.times import limit_seconds
from megatron_compete.common.errors import CompeteError

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
    """Whether Slurm could be asked; else a job that is not among `jobs` may be queued all the same."""
    jobs: dict[str, QueuedJob]
    why: str = field(default="", compare=False)
    """Why it could not."""


def ask_queue(job_ids: Iterable[str]) -> Queue:
    """Ask `squeue` once for all of these; jobs that are over are not in the answer."""
    wanted = sorted(set(job_ids))
    if not wanted:
        return Queue(True, {})
    command = ["squeue", "--noheader", "--jobs", ",".join(wanted), "--format", FORMAT]
    # The user's own defaults, $SQUEUE_STATES for one, would leave jobs out of the answer.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, env=environment)
    except OSError as error:
        return Queue(False, {}, f"squeue: {error.strerror}")
    except subprocess.TimeoutExpired:
        return Queue(False, {}, f"squeue does not answer within {TIMEOUT_SECONDS:g} s")
    if answer.returncode != 0:  # a single job that is over is an error to squeue; so is a controller that is down
        why = " ".join(answer.stderr.split()) or f"squeue: exit code {answer.returncode}"
        return Queue("Invalid job id" in why, {}, why)
    lines = answer.stdout.splitlines()
    odd = [line for line in lines if line.count("|") != FORMAT.count("|")]
    jobs = [_parse(line) for line in lines if line not in odd]
    return Queue(not odd, {job.job_id: job for job in jobs}, f"squeue says {odd[0].strip()!r}" if odd else "")


def _parse(line: str) -> QueuedJob:
    job_id, state, reason, used, limit, left, start, nodes = line.split("|")
    return QueuedJob(job_id, state, reason, _seconds(used) or 0, _seconds(limit), _seconds(left), start, nodes)


def _seconds(text: str) -> int | None:
    """squeue writes `M:SS`, `H:MM:SS`, `D-HH:MM:SS`, or words."""
    try:
        return limit_seconds(text)
    except CompeteError:  # 0:00, INVALID, NOT_SET
        return 0 if text.strip("0:") == "" else None
