"""What a job runs, copied into its run folder: later edits and pulls do not reach jobs that wait in the queue.

From a git checkout: the files that git tracks or would track, as the working tree has them. From an unpacked or
installed package: the package with the scripts beside it.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import megatron_compete
from megatron_compete import __version__
from megatron_compete.errors import CompeteError

ROOMS = ("megatron_compete", "tools", "examples", "slurm", "tests/evaluation")
"""Folders that a job needs; the last holds evaluation tasks that need no network."""

SCRIPTS = "slurm/pretrain.sbatch"
"""Without it there is nothing to submit."""

PATCH_BYTES = 64_000_000
"""A larger patch is of data, not of code; the snapshot has the code in any case."""


@dataclass(frozen=True)
class GitState:
    """The checkout that a snapshot was taken from."""

    revision: str
    changed: tuple[str, ...]
    """`git status --porcelain`: what differs from the revision."""
    patch: bytes
    """From the revision to the working tree; files that git does not track are in the snapshot alone."""

    def text(self) -> str:
        """For `git.txt`."""
        state = "as committed" if not self.changed else "with changes (git.patch; new files in code/):"
        return "\n".join([self.revision, state, *self.changed, ""])


@dataclass(frozen=True)
class Snapshot:
    """Files of a snapshot, where each lies now, and where it comes from."""

    files: Mapping[str, Path]
    git: GitState | None

    def copy_to(self, folder: Path) -> None:
        """Copy all files, with their execute bits."""
        for name, source in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, folder / name)

    def digest(self) -> str:
        """Of all names and contents."""
        return digest_of(self.files)

    def git_files(self) -> dict[str, bytes]:
        """`git.txt`, and `git.patch` where there is something in it."""
        if self.git is None:
            return {"git.txt": f"no git checkout; megatron-compete {__version__}\n".encode()}
        files = {"git.txt": self.git.text().encode()}
        if self.git.patch:
            files["git.patch"] = self.git.patch
        return files


def take_snapshot() -> Snapshot:
    """The running package and the scripts beside it.

    Raises:
        CompeteError: the scripts are not there.
    """
    root = Path(megatron_compete.__file__).resolve().parent.parent
    git = git_state(root)
    if git is not None:
        names = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *ROOMS).decode()
        files = {name: root / name for name in sorted(set(names.split("\0"))) if name and (root / name).is_file()}
    else:
        files = dict(_walk(root, ROOMS))
        if SCRIPTS not in files:
            files |= dict(_walk(Path(sys.prefix) / "share" / "megatron-compete", ROOMS[1:]))
    if SCRIPTS not in files:
        raise CompeteError(
            f"{SCRIPTS} is neither in {root} nor in {sys.prefix}/share/megatron-compete: submit from a checkout of the "
            "repository, or install a wheel of it"
        )
    return Snapshot(files, git)


def git_state(root: Path) -> GitState | None:
    """The git checkout whose top is `root`; None where there is none, or no git."""
    try:
        if Path(_git(root, "rev-parse", "--show-toplevel").decode().strip()).resolve() != root:
            return None
        revision = _git(root, "rev-parse", "HEAD").decode().strip()
        changed = tuple(_git(root, "status", "--porcelain", "--", *ROOMS).decode().splitlines())
        patch = _git(root, "diff", "--binary", "HEAD", "--", *ROOMS)
    except (OSError, subprocess.CalledProcessError):
        return None
    return GitState(revision, changed, patch if len(patch) <= PATCH_BYTES else b"")


def digest_of(files: Mapping[str, Path]) -> str:
    """sha256 over names and contents, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(f"{name}\0{hashlib.sha256(files[name].read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def files_under(folder: Path) -> dict[str, Path]:
    """Files below a folder by their names in it; what Python compiled is not counted."""
    return dict(_walk(folder, (".",)))


def _walk(root: Path, rooms: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    for room in rooms:
        for folder, folders, names in os.walk(root / room):
            folders[:] = sorted(name for name in folders if name != "__pycache__")
            for name in sorted(names):
                path = Path(folder, name)
                yield path.relative_to(root).as_posix(), path


def _git(root: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=True).stdout
