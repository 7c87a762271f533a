"""The `--save` folder before the first step: writable from every node, and no other job writes there.

Both would otherwise be found out at the first checkpoint, hours later: one as a failed save, the other as two runs that
overwrite each other's shards.
"""

import argparse
import atexit
import json
import os
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from megatron.core.transformer.module import MegatronModule

from megatron_compete.common.errors import CompeteError
from megatron_compete.resilience.agreement import describe, on_rank_0, problems_of_ranks

Owner = dict[str, Any]

LOCK = ".megatron-compete.lock"
HEARTBEAT_SECONDS = 15.0
PATIENCE_SECONDS = 75.0
"""A lock of another host that did not move for so long has no owner any more. More than the minute for which NFS may
show an old modification time."""

JOB_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "COMPETE_RUN")
ATTEMPT_VARIABLES = ("SLURM_RESTART_COUNT", "COMPETE_ATTEMPT")


def claim_save_folder(model: list[MegatronModule], args: argparse.Namespace) -> list[MegatronModule]:
    """Stop unless this job alone can write its `--save` folder; a hook that Megatron calls when the model is built.

    Raises:
        CompeteError: on every rank.
    """
    if args.save is None:
        return model
    folder = Path(args.save)
    on_rank_0(lambda: folder.mkdir(parents=True, exist_ok=True))
    problem = probe(folder) if int(os.environ.get("LOCAL_RANK", "0")) == 0 else None
    problems = problems_of_ranks(problem)
    if problems:
        raise CompeteError(f"--save {folder} cannot be written: {describe(problems)}")
    on_rank_0(lambda: take_lock(folder))
    return model


def probe(folder: Path) -> str | None:
    """What keeps this process from writing a file in `folder`; None if nothing does."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"{error.strerror} (on {socket.gethostname()})"
    return None


_held: list["Lock"] = []


def take_lock(folder: Path) -> None:
    """Lock `folder` for this process until it ends.

    Raises:
        CompeteError: another job that still runs holds it.
    """
    lock = Lock(folder / LOCK)
    lock.take()
    _held.append(lock)
    atexit.register(lock.release)


def release_locks() -> None:
    """Give up what this process holds."""
    while _held:
        _held.pop().release()


class Lock:
    """A file that names its owner; its modification time moves as long as the owner lives.

    Not `flock`, which many parallel file systems do not pass on between nodes. A kill leaves the file behind. It is
    taken over where the owner is known to be gone: a dead process of this host, an earlier attempt of the same job, or a
    file whose time stands still.
    """

    def __init__(self, path: Path, heartbeat: float = HEARTBEAT_SECONDS, patience: float = PATIENCE_SECONDS) -> None:
        self.path, self.heartbeat, self.patience = path, heartbeat, patience
        self._stop = threading.Event()

    def take(self) -> None:
        """Create the file, or take over one without an owner.

        Raises:
            CompeteError: the owner still runs.
        """
        while not self._create():
            owner = self._owner()
            if self._is_held(owner):
                raise CompeteError(
                    f"--save {self.path.parent} is in use: {_describe(owner)} has saved there since "
                    f"{owner.get('since', 'an unknown time')}. End it, or give another --save"
                )
            self._discard(owner)
        threading.Thread(target=self._beat, name="save-folder-lock", daemon=True).start()

    def release(self) -> None:
        """Remove the file if it is still this process's."""
        self._stop.set()
        if _is_alive(self._owner()) and self._owner().get("pid") == os.getpid():
            self.path.unlink(missing_ok=True)

    def _create(self) -> bool:
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w") as file:
            json.dump(_this_process(), file)
        return True

    def _owner(self) -> Owner:
        try:
            owner = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}  # gone, or its writer was killed: nothing but its time tells of it
        return owner if isinstance(owner, dict) else {}

    def _is_held(self, owner: Owner) -> bool:
        alive = _is_alive(owner)
        if alive is None and _is_earlier_attempt(owner):
            return False
        return self._still_moves() if alive is None else alive

    def _still_moves(self) -> bool:
        """Watch the file's time; the clocks of two hosts are never compared."""
        since, deadline = self._moved(), time.monotonic() + self.patience
        while time.monotonic() < deadline:
            if self._moved() != since:
                return self.path.exists()
            time.sleep(min(1.0, self.heartbeat))
        return False

    def _moved(self) -> int:
        try:
            return self.path.stat().st_mtime_ns
        except OSError:
            return 0

    def _discard(self, owner: Owner) -> None:
        """Remove the file that was judged, and no other: another job may have taken it over a moment before."""
        aside = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return
        taken = Lock(aside)._owner()
        if taken != owner and not self.path.exists():
            aside.rename(self.path)
        else:
            aside.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._stop.wait(self.heartbeat):
            try:
                os.utime(self.path)
            except OSError:
                return  # the folder is gone: the next save will tell


def _this_process() -> Owner:
    return {
        "host": socket.gethostname(),
        "namespace": _pid_namespace(),
        "pid": os.getpid(),
        "started": _start_time(os.getpid()),
        "job": _first(JOB_VARIABLES),
        "attempt": _first(ATTEMPT_VARIABLES),
        "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _first(names: tuple[str, ...]) -> str | None:
    return next((f"{name}={os.environ[name]}" for name in names if os.environ.get(name)), None)


def _pid_namespace() -> str:
    """Containers on one host may each have their own process numbers."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _start_time(pid: int) -> str | None:
    """When a process of this host began, in ticks: a process number that was given again is not taken for the owner."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]  # proc_pid_stat(5), counted after the name


def _is_alive(owner: Owner) -> bool | None:
    """Whether the owner runs; None if this host cannot know."""
    if (owner.get("host"), owner.get("namespace")) != (socket.gethostname(), _pid_namespace()):
        return None
    return owner.get("started") is not None and _start_time(int(owner.get("pid", 0))) == owner["started"]


def _is_earlier_attempt(owner: Owner) -> bool:
    """Of this very job, requeued: the scheduler runs one attempt at a time."""
    if owner.get("job") is None or owner["job"] != _first(JOB_VARIABLES):
        return False
    return owner.get("attempt") != _first(ATTEMPT_VARIABLES)


def _describe(owner: Owner) -> str:
    job = f" ({owner['job']})" if owner.get("job") else ""
    return f"process {owner.get('pid', '?')} on {owner.get('host', 'an unknown host')}{job}"
