"""A run folder: everything that a job needs, and everything that it leaves.

    recipe.yaml    resolved recipe (pretrain)      submit.sbatch  `sbatch` it to run the job again
    command.txt    what runs, as a shell line      job.json       the latest submission
    cluster.env    resolved settings               logs/ attempts.tsv outcomes/ failures/ progress.json finished
    git.txt        revision, changes (git.patch)   checkpoints/ tensorboard/ data/ hf/ results/
    code/          snapshot of what runs           earlier/N/     what --update replaced
                                                   report.html    of `megatron-compete report`

The left side is written here, whole or not at all; the right side by Slurm, `slurm/job.sh` and the trainer.
"""

import json
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_compete.cluster.snapshot import Snapshot, digest_of, files_under
from megatron_compete.common.errors import CompeteError
from megatron_compete.common.files import publish, rename, write_whole

SCRIPT, CODE, JOB, FINISHED = "submit.sbatch", "code", "job.json", "finished"
ATTEMPTS, RUNNING = "attempts.tsv", "attempt.running"
RECIPE, COMMAND, SETTINGS = "recipe.yaml", "command.txt", "cluster.env"
REPORT = "report.html"
GIT = ("git.txt", "git.patch")
COMPARED = (RECIPE, COMMAND, SETTINGS, SCRIPT)
WRITTEN = (*COMPARED, *GIT, CODE)
"""What a submission writes, and --update writes anew."""

PRIVATE = 0o600
"""Mode of files that hold settings: arguments and options may be nobody else's business."""

UNUSABLE = frozenset("%'\"\\\n\t ")
"""Characters that mean something else in an #SBATCH line or a file name pattern of Slurm's."""


@dataclass(frozen=True)
class Contents:
    """What a run folder is to hold."""

    files: Mapping[str, str]
    """By name; those of `COMPARED` that the job has."""
    snapshot: Snapshot


class RunFolder:
    """A run folder at `path`, which need not exist.

    Raises:
        CompeteError: a path that Slurm would read as something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        odd = UNUSABLE.intersection(str(self.path))
        if odd:
            raise CompeteError(
                f"--run {self.path}: {min(odd)!r} in a path means something else to Slurm, choose another"
            )

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def is_finished(self) -> bool:
        """Whether its job has done all it was to do."""
        return (self / FINISHED).exists()

    @property
    def was_submitted(self) -> bool:
        """Whether a job may have run in it."""
        return (self / JOB).exists() or (self / ATTEMPTS).exists()

    @property
    def job_id(self) -> str | None:
        """Id of the latest submission, as far as `job.json` says."""
        try:
            return str(json.loads((self / JOB).read_text())["job_id"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def job_ids(self) -> list[str]:
        """Jobs that may be in the queue, newest first: the latest submission, and one that began by `sbatch` of the script.

        Raises:
            CompeteError: `job.json` does not say which was submitted.
        """
        if (self / JOB).exists() and self.job_id is None:
            raise CompeteError(
                f"{self / JOB} is damaged, and the job that it is of may be in the queue: look with squeue, then remove it"
            )
        begun = [_fields(self / RUNNING)[:1], _fields(self / ATTEMPTS)[1:2]]
        return list(dict.fromkeys(filter(None, [self.job_id, *(job_id for some in begun for job_id in some)])))

    def record_submission(self, job_id: str, kind: str) -> None:
        """Write `job.json`.

        Raises:
            CompeteError: it cannot be written; the job is in the queue.
        """
        record = {"job_id": job_id, "submitted": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "kind": kind}
        try:
            write_whole(self / JOB, json.dumps(record) + "\n")
        except OSError as error:
            raise CompeteError(
                f"job {job_id} is submitted, but {self / JOB} cannot be written ({error.strerror}): scancel {job_id} before "
                "you submit again"
            ) from None

    def differences(self, contents: Contents) -> tuple[str, ...]:
        """Names of what it holds otherwise; none where the same job is there already."""
        differing = [name for name in COMPARED if _text(self / name) != contents.files.get(name)]
        if digest_of(files_under(self / CODE)) != contents.snapshot.digest():
            differing.append(f"{CODE}/")
        return tuple(differing)

    def check(self, contents: Contents, update: bool = False) -> tuple[str, ...]:
        """What `write` would change; nothing where the same job is there already.

        Raises:
            CompeteError: another job's folder, or something that is no run folder.
        """
        if not self.path.exists():
            return (*contents.files, CODE)
        if not (self / SCRIPT).exists() and any(self.path.iterdir()):
            raise CompeteError(f"--run {self.path} exists and is no run folder: choose another")
        differing = self.differences(contents)
        if differing and self.was_submitted and not update:
            raise CompeteError(
                f"--run {self.path} is of another job ({', '.join(differing)} differ): choose another --run, go on there "
                f"with the new settings by --update, or run what is there again: sbatch {self / SCRIPT}"
            )
        return differing

    def write(self, contents: Contents, update: bool = False) -> None:
        """Make the folder hold `contents`; the same contents again change nothing.

        A folder whose job was never submitted is replaced.

        Args:
            update: of a folder whose job was submitted, replace what differs and keep what the job has made.
        Raises:
            CompeteError: see `check`; or a place that cannot be written to.
        """
        try:
            if not self.check(contents, update):
                return
            if self.was_submitted:
                self._update(contents)
            else:
                self._create(contents)
        except OSError as error:
            raise CompeteError(f"--run {self.path} cannot be written: {error.strerror}: {error.filename}") from None

    def _create(self, contents: Contents) -> None:
        staged = self._staged(contents)
        (staged / "logs").mkdir()  # Slurm does not make it
        aside = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.old")
        if self.path.exists():
            rename(self.path, aside)
        publish(staged, self.path)
        shutil.rmtree(aside, ignore_errors=True)

    def _update(self, contents: Contents) -> None:
        """Keep what is replaced as earlier/N."""
        staged = self._staged(contents)
        earlier = self / "earlier" / str(sum(1 for _ in (self / "earlier").glob("*")))
        earlier.mkdir(parents=True)
        for name in WRITTEN:
            if (self / name).exists():
                rename(self / name, earlier / name)
            if (staged / name).exists():
                publish(staged / name, self / name)
        staged.rmdir()

    def _staged(self, contents: Contents) -> Path:
        """The new contents in a folder beside this one; nothing is left of it after a failure."""
        staged = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.tmp")
        staged.mkdir(parents=True)
        try:
            contents.snapshot.copy_to(staged / CODE)
            files: dict[str, str | bytes] = {**contents.snapshot.git_files(), **contents.files}
            for name, data in files.items():
                write_whole(staged / name, data, mode=PRIVATE)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        return staged


def _text(path: Path) -> str | None:
    return path.read_text() if path.is_file() else None


def _fields(path: Path) -> list[str]:
    """Fields of the last line of a table that the batch script writes; none without one."""
    lines = (_text(path) or "").splitlines()
    return lines[-1].split("\t") if lines else []
