"""Failures that a run folder has on record, and which of them came first: as the batch script says."""

import subprocess
from pathlib import Path

from megatron_compete.launch.run_files import Failure, read_failure

OUTCOME = Path(__file__).resolve().parents[1] / "slurm" / "outcome.sh"


def read_failures(folder: Path) -> list[Failure]:
    """All that can be read, by attempt and time."""
    failures = [read_failure(path) for path in (folder / "failures").glob("*.json")]
    return sorted((each for each in failures if each is not None), key=lambda each: (each.attempt, each.time))


def from_batch_script(folder: Path, attempt: int, command: str) -> str:
    """Output of one of the functions of `slurm/outcome.sh`, in this run folder; nodes are n1 to n9."""
    script = f'. {OUTCOME}\nCOMPETE_RUN="$1" COMPETE_ATTEMPT="$2" code="${{3:-1}}" late="" stopping=""\nnodes=(n{{1..9}})\n{command}'
    done = subprocess.run(
        ["bash", "-c", script, "bash", str(folder), str(attempt)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.strip()


def first_failure(folder: Path, attempt: int = 0) -> Failure | None:
    """The one that is printed, and whose node is counted."""
    path = from_batch_script(folder, attempt, "first_failure")
    return read_failure(Path(path)) if path else None
