"""Run folders whose trainer is a stand-in: a few lines of Python that a test writes.

The batch scripts are the real ones; `python -m megatron_compete pretrain` finds the stand-in, because a run folder's
code goes before what is installed.
"""

import json
import shutil
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]

PRELUDE = '''
"""A trainer's stand-in: what a test has it do, with the files that the real one writes."""
import json, os, signal, sys, time
from pathlib import Path

run = Path(os.environ["COMPETE_RUN"])
attempt = int(os.environ["COMPETE_ATTEMPT"])
rank = int(os.environ.get("PMI_RANK", os.environ["SLURM_PROCID"]))  # mpirun's, else srun's
node = os.environ.get("SLURMD_NODENAME") or os.uname().nodename
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(time.time()))


def outcome(word, *details):
    if rank == 0:
        (run / "outcomes" / str(attempt)).write_text("\\n".join([word, *details]) + "\\n")


def progress(iteration, checkpoint=None):
    if rank == 0:
        record = {"attempt": attempt, "iteration": iteration, "loss": 1.0, "checkpoint": checkpoint, "world_size": 2}
        (run / "progress.json").write_text(json.dumps(record) + "\\n")


def failure(exit_code, message, of=None, at=None):
    record = {"attempt": attempt, "host": node, "rank": rank if of is None else of, "local_rank": 0,
              "exit_code": exit_code, "time": at or time.time(), "message": message}
    (run / "failures" / f"{attempt}-{node}-{record['rank']}.json").write_text(json.dumps(record) + "\\n")


def until_told():
    """Train until the stop signal comes; fails the attempt when it does not."""
    (run / f"up-{attempt}-{rank}").touch()
    deadline = time.time() + 900
    while not told:
        if time.time() > deadline:
            sys.exit("no signal")
        time.sleep(0.05)


def until_there(name):
    """Wait for a file of the run folder."""
    deadline = time.time() + 900
    while not (run / name).exists():
        if time.time() > deadline:
            sys.exit(f"{name} does not come")
        time.sleep(0.05)


def until_ended():
    """Wait for the launcher to end this rank."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(900)


def leave(code):
    """As the real ranks: an exit code that ends the others comes after all that rank 0 has to write."""
    if rank == 0:
        (run / f"left-{attempt}").touch()
    until_there(f"left-{attempt}")
    sys.exit(code)


'''


@dataclass(frozen=True)
class StandInRun:
    """A run folder with a stand-in for the trainer."""

    folder: Path

    @property
    def script(self) -> Path:
        """What is submitted."""
        return self.folder / "submit.sbatch"

    def attempts(self) -> list[dict[str, str]]:
        """attempts.tsv, a row an attempt."""
        return read_attempts(self.folder)

    def outcomes(self) -> list[str]:
        """Outcome of each attempt."""
        return [row["outcome"] for row in self.attempts()]

    def wrote(self, name: str) -> str | None:
        """A file that the stand-in leaves, None where there is none."""
        path = self.folder / name
        return path.read_text() if path.exists() else None

    def job_record(self) -> dict[str, Any]:
        """job.json."""
        return dict(json.loads((self.folder / "job.json").read_text()))


COLUMNS = ("number", "job", "begin", "end", "nodes", "outcome", "exit_code", "failed_node", "reason")


def read_attempts(folder: Path) -> list[dict[str, str]]:
    """attempts.tsv of a run folder, a row an attempt."""
    path = folder / "attempts.tsv"
    lines = path.read_text().splitlines() if path.exists() else []
    return [dict(zip(COLUMNS, line.split("\t"), strict=True)) for line in lines]


def stand_in_run(folder: Path, trainer: str, header: str = "--nodes=2 --ntasks-per-node=2", **settings: str) -> StandInRun:  # fmt: skip
    """A run folder whose trainer does what `trainer` says, after `PRELUDE`.

    Args:
        header: sbatch's options.
        settings: of cluster.env, without COMPETE_.
    """
    code = folder / "code"
    shutil.copytree(REPOSITORY / "slurm", code / "slurm")
    (folder / "logs").mkdir()
    write_trainer(code, trainer)
    (folder / "recipe.yaml").write_text(f"arguments:\n  save: {folder}/checkpoints\n")
    values = {"VENV": sys.prefix, "TASKS_PER_NODE": "2", "BACKOFF_SECONDS": "1"} | settings
    (folder / "cluster.env").write_text("".join(f"COMPETE_{name}={value}\n" for name, value in values.items()))
    options = f"{header} --job-name={folder.name} --output={folder}/logs/%j.log --open-mode=append --requeue"
    (folder / "submit.sbatch").write_text(
        "#!/bin/bash\n"
        + "".join(f"#SBATCH {option}\n" for option in options.split())
        + f'export COMPETE_RUN={folder} PYTHONPATH={code}\nexec bash "{code}/slurm/pretrain.sbatch"\n'
    )
    return StandInRun(folder)


def write_trainer(code: Path, trainer: str) -> None:
    """The stand-in as `python -m megatron_compete` in this folder."""
    package = code / "megatron_compete"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(PRELUDE + textwrap.dedent(trainer))
