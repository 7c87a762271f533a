"""The work folder: who is at it, which job it belongs to, and the shards that are finished."""

import errno
import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

from megatron_compete.common.errors import CompeteError
from megatron_compete.common.files import StagedFiles
from megatron_compete.data.preprocessing.identity import Identity, dropped_keys, refuse_difference
from megatron_compete.data.preprocessing.parts import JOURNAL, ShardRecord, is_whole, read_journal

LOCK_SECONDS = 10.0
"""How long to wait for the processes of a run that was killed to be gone."""

_OWN = {"lock", "job.json", "parts", "output"}
"""What the folder holds, besides hidden files of writers and of file systems."""

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class WorkFolder:
    """The folder beside the output in which an unfinished job lies.

    Args:
        path: where.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock: int | None = None

    @property
    def parts(self) -> str:
        """Folder of the part files."""
        return os.path.join(self.path, "parts")

    @property
    def aside(self) -> str:
        """Folder in which the output is put together."""
        return os.path.join(self.path, "output")

    @property
    def _job_path(self) -> str:
        return os.path.join(self.path, "job.json")

    def open(self, identity: Identity, restart: bool) -> dict[str, Any] | None:
        """Take the folder for this run.

        Returns:
            The engine that an unfinished run of this job used, as it was noted; None for a new job.
        Raises:
            CompeteError: another run is at it, what it holds belongs to another job (without `restart`), or it is not
                such a folder.
        """
        self._refuse_foreign_files()
        self._take_lock()
        try:
            return self._take_over(identity, restart)
        except BaseException:
            self.close()
            raise

    def _take_over(self, identity: Identity, restart: bool) -> dict[str, Any] | None:
        noted = None if restart else self._read_job()
        if noted is not None:
            self._refuse_another_job(noted, identity)
        elif self.has_finished_shards() and not restart:
            raise CompeteError(f"{self.path} has finished shards, but {self._job_path} is gone: begin with --restart")
        else:
            shutil.rmtree(self.parts, ignore_errors=True)
        shutil.rmtree(self.aside, ignore_errors=True)
        for folder in (self.parts, self.aside):
            os.makedirs(folder, exist_ok=True)
        return None if noted is None else noted["engine"]

    def _refuse_foreign_files(self) -> None:
        """The folder is removed in the end; what is not of this tool must not go with it."""
        names = sorted(os.listdir(self.path)) if os.path.isdir(self.path) else []
        foreign = next((name for name in names if name not in _OWN and not name.startswith(".")), None)
        if foreign is not None:
            raise CompeteError(
                f"{self.path} is where unfinished work goes, and it holds {foreign}, which is not of this tool: move "
                "that, or take another --output-prefix"
            )

    def _refuse_another_job(self, noted: dict[str, Any], identity: Identity) -> None:
        """Refuse the unfinished run of another job; one that had more keys is the same if these have no token yet."""
        dropped = dropped_keys(noted["identity"], identity)
        datasets = (dataset for record in self._all_records() for dataset in record.datasets)
        if dropped and not any(dataset.tokens for dataset in datasets if dataset.key in dropped):
            self.note(identity, noted["engine"])
        else:
            refuse_difference(noted["identity"], identity, self.path)

    def note(self, identity: Identity, engine: dict[str, Any]) -> None:
        """Write down the job and the engine it uses."""
        with StagedFiles() as staged:
            with open(staged.path(self._job_path), "w", encoding="utf-8") as stream:
                json.dump({"identity": identity, "engine": engine}, stream, indent=1)
            staged.commit()

    def records(self) -> Iterator[ShardRecord]:
        """Finished shards of earlier runs whose parts still have their checksums."""
        return (record for record in self._all_records() if is_whole(record))

    def has_finished_shards(self) -> bool:
        """Whether there is anything here that a later run would go on from."""
        return next(self._all_records(), None) is not None

    def _all_records(self) -> Iterator[ShardRecord]:
        for name in sorted(os.listdir(self.parts)) if os.path.isdir(self.parts) else ():
            if name.endswith(JOURNAL):
                yield from read_journal(os.path.join(self.parts, name))

    def remove(self) -> None:
        """Remove the folder with all it holds, the lock last."""
        for folder in (self.parts, self.aside):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(self.path, ignore_errors=True)

    def close(self) -> None:
        """Let another run have it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _read_job(self) -> dict[str, Any] | None:
        try:
            with open(self._job_path, encoding="utf-8") as stream:
                noted = json.load(stream)
            if not (isinstance(noted["identity"]["settings"], dict) and isinstance(noted["engine"], dict)):
                raise ValueError
            return dict(noted)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError):
            raise CompeteError(f"{self._job_path} is damaged: begin again with --restart") from None

    def _take_lock(self) -> None:
        """Lock the folder until all processes forked from this one have ended."""
        end = time.monotonic() + LOCK_SECONDS
        while not self._try_to_lock():
            if time.monotonic() > end:
                raise CompeteError(
                    f"{self.path} is in use: another run writes this output; wait for it, or take another "
                    "--output-prefix"
                )
            time.sleep(0.02)

    def _try_to_lock(self) -> bool:
        os.makedirs(self.path, exist_ok=True)
        path = os.path.join(self.path, "lock")
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.exists(path) or not os.path.samestat(os.fstat(lock), os.stat(path)):
                os.close(lock)  # the run that had it has removed the folder meanwhile
                return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(lock)
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    return False
                raise
            print(f"{self.path} cannot be locked here: give no second command for it meanwhile", file=sys.stderr)
        self._lock = lock
        return True
