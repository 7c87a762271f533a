"""What a job runs, copied into its run folder: later edits and pulls do not reach jobs that wait in the queue.

Only files that belong to this project: what lies beside them, a `cluster.env` with tokens in it for one, stays where it is.
In a git checkout those that git tracks, as the working tree has them; of an unpacked or installed package, those that a
wheel of it holds.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import megatron_compete
from megatron_compete import __version__
from megatron_compete.common.errors import CompeteError

ROOMS = ("megatron_compete", "tools", "examples", "slurm", "tests/evaluation")
"""Folders that a job needs; the last holds evaluation tasks that need no network."""

PACKAGE = ("megatron_compete/**/*.py", "megatron_compete/py.typed", "megatron_compete/launch/presets/*.yaml")
BESIDE = (
    "tools/*.py", "tools/*.sh", "tools/lmms_requirements.txt", "examples/**/*.yaml", "examples/**/*.py", "examples/*.sh",
    "slurm/*.sbatch", "slurm/*.sh",
    "slurm/README.md", "slurm/cluster.env.example", "tests/evaluation/*.jsonl", "tests/evaluation/*.yaml",
    "tests/evaluation/digit_pictures/*.yaml", "tests/evaluation/digit_pictures/*.py",
)  # fmt: skip
"""What is in them, of the package and beside it, where no git says so. A wheel has the same (pyproject.toml)."""

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
    """From the revision to the working tree."""

    def untracked(self) -> tuple[str, ...]:
        """Files that a snapshot would have if git tracked them."""
        return tuple(line.removeprefix("?? ") for line in self.changed if line.startswith("?? "))

    def text(self) -> str:
        """For `git.txt`."""
        state = "as committed" if not self.changed else "with changes (git.patch; ?? is not tracked, and not in code/):"
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
        names = os.fsdecode(_git(root, "ls-files", "-z", "--", *ROOMS)).split("\0")
        files = {name: root / name for name in sorted(names) if name and (root / name).is_file()}
    else:
        installed = Path(sys.prefix) / "share" / "megatron-compete"
        beside = root if (root / SCRIPTS).is_file() else installed  # site-packages may have a tools/ of somebody else's
        files = _matching(root, PACKAGE) | _matching(beside, BESIDE)
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
        changed = tuple(
            os.fsdecode(_git(root, "status", "--porcelain", "--untracked-files=all", "--", *ROOMS)).splitlines()
        )
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
    return {name: path for name, path in _matching(folder, ("**/*",)).items() if "__pycache__" not in path.parts}


def _matching(root: Path, patterns: Iterable[str]) -> dict[str, Path]:
    found = sorted(path for pattern in patterns for path in root.glob(pattern) if path.is_file())
    return {path.relative_to(root).as_posix(): path for path in found}


def _git(root: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=True).stdout
