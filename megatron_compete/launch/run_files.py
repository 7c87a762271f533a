"""What a job leaves in its run folder: outcome, failures and progress.

A batch script sets COMPETE_RUN (the folder) and COMPETE_ATTEMPT (which start of the job this is, from 0). Without the
first, nothing is written. All files appear whole or not at all. Which of an attempt's failures came first, the batch script
decides when the attempt is over (`slurm/outcome.sh`), for its log, for attempts.tsv and for the node it leaves out.

    outcomes/N                  first line `finished`, `stopped` or `refused`; what follows explains
    failures/N-HOST-RANK.json   one line: a rank that failed in attempt N
    progress.json               the last step that was logged
    steps.jsonl                 a line for every step that was logged, of all attempts in their order
"""

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from megatron_compete.common.errors import CompeteError
from megatron_compete.common.files import write_whole

STEPS = "steps.jsonl"

Outcome = Literal["finished", "stopped", "refused"]


@dataclass(frozen=True)
class Failure:
    """A rank that failed."""

    attempt: int
    host: str
    rank: int
    local_rank: int
    exit_code: int
    """Negative: the signal that ended it."""
    time: float
    """Epoch seconds; where only its end was seen, the last time it was known to be alive."""
    message: str
    follows: bool = False
    """Whether the rank itself was well, and left because another one had failed."""

    def describe(self) -> str:
        """One line: who, where and why."""
        return f"rank {self.rank} on host {self.host} failed: {self.message}"


@dataclass(frozen=True)
class RunFiles:
    """The run folder as one attempt of the job sees it."""

    folder: Path
    attempt: int

    def write_outcome(self, outcome: Outcome, *details: str) -> None:
        """How the attempt ended; called by rank 0 before any rank leaves."""
        _note(self.folder / "outcomes" / str(self.attempt), "\n".join([outcome, *details]) + "\n")

    def read_outcome(self) -> str | None:
        """First word of the attempt's outcome, or None."""
        text = _read(self.folder / "outcomes" / str(self.attempt)).split()
        return text[0] if text else None

    def write_failure(self, failure: Failure) -> None:
        """Record a rank's failure; the first record of a rank stays."""
        path = self._failure_path(failure.host, failure.rank)
        if not path.exists():
            _note(path, json.dumps(asdict(failure)) + "\n")

    def read_failure(self, host: str, rank: int) -> Failure | None:
        """What is recorded of this rank in this attempt."""
        return read_failure(self._failure_path(host, rank))

    def write_progress(self, progress: Mapping[str, Any]) -> None:
        """Replace progress.json."""
        _note(self.folder / "progress.json", json.dumps({"attempt": self.attempt, **progress}) + "\n")

    def add_step(self, step: Mapping[str, Any]) -> None:
        """Add a line to steps.jsonl in one write; what a kill left of a line before it stands alone."""
        path = self.folder / STEPS
        try:
            with open(path, "a+b", buffering=0) as file:
                end = file.seek(0, os.SEEK_END)
                torn = end > 0 and os.pread(file.fileno(), 1, end - 1) != b"\n"
                file.write(b"\n" * torn + json.dumps({"attempt": self.attempt, **step}).encode() + b"\n")
        except OSError as error:
            _say_unwritten(path, error)

    def _failure_path(self, host: str, rank: int) -> Path:
        return self.folder / "failures" / f"{self.attempt}-{host}-{rank}.json"


def current_run(environment: Mapping[str, str] = os.environ) -> RunFiles | None:
    """The run folder of this job's environment, or None where no batch script set one.

    Raises:
        CompeteError: the folder is missing or the attempt is no number.
    """
    name = environment.get("COMPETE_RUN")
    if not name:
        return None
    folder = Path(name)
    if not folder.is_dir():
        raise CompeteError(f"COMPETE_RUN={name} is no folder that this host sees: put it on a shared file system")
    return RunFiles(folder, _attempt(folder, environment))


def _attempt(folder: Path, environment: Mapping[str, str]) -> int:
    """COMPETE_ATTEMPT, else Slurm's count of restarts, else the attempts that were noted down."""
    for name in ("COMPETE_ATTEMPT", "SLURM_RESTART_COUNT"):
        value = environment.get(name)
        if value is not None:
            if not value.isdecimal():
                raise CompeteError(f"{name}={value} is no number from 0: it counts the starts of the job")
            return int(value)
    return len(_read(folder / "attempts.tsv").splitlines())


def record_failure(
    message: str,
    rank: int,
    local_rank: int,
    exit_code: int,
    at: float | None = None,
    host: str | None = None,
    follows: bool = False,
) -> Failure:
    """A failure in this attempt, recorded in the run folder where there is one.

    Args:
        message: the cause; its first line counts. Empty: what the exit code says.
        exit_code: negative for a signal.
        at: epoch seconds, default now.
        host: default this one.
        follows: the rank was well, and left because another one had failed.
    Returns:
        What is recorded; a record that the rank wrote itself stays.
    """
    run = current_run()
    failure = Failure(
        attempt=run.attempt if run else 0, host=host or host_name(), rank=rank, local_rank=local_rank,
        exit_code=exit_code, time=time.time() if at is None else at,
        message=_first_line(message) or describe_exit(exit_code), follows=follows,
    )  # fmt: skip
    if run is None:
        return failure
    run.write_failure(failure)
    return run.read_failure(failure.host, rank) or failure


def host_name() -> str:
    """This node's name, as Slurm knows it where there is Slurm."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0]


def describe_exit(exit_code: int) -> str:
    """`ended by SIGKILL` or `exit code 1`."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"ended by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"ended by signal {-exit_code}"


def read_failure(path: Path) -> Failure | None:
    """One record, or None where there is none that can be read."""
    try:
        return Failure(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def read_steps(folder: Path) -> list[dict[str, Any]]:
    """What steps.jsonl holds, in the order in which it was logged; a line that a kill cut off is left out."""
    steps = []
    for line in _read(folder / STEPS).splitlines():
        with contextlib.suppress(ValueError):
            steps.append(json.loads(line))
    return [step for step in steps if isinstance(step, dict)]


def _note(path: Path, text: str) -> None:
    """Write, or say that it cannot be written: a full disk must not end a job that could go on without its notes."""
    try:
        write_whole(path, text)
    except OSError as error:
        _say_unwritten(path, error)


def _say_unwritten(path: Path, error: OSError) -> None:
    print(f"megatron-compete: {path} cannot be written: {error.strerror}", file=sys.stderr, flush=True)


def _first_line(message: str) -> str:
    lines = message.strip().splitlines()
    return lines[0][:500] if lines else ""


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
