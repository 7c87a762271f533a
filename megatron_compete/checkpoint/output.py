"""A folder of output: written beside its place and put there at the end, and nothing of the user's overwritten.

What is being written lies in `.NAME.partial` beside the output, under a lock. A run that was killed leaves it behind
without the lock; the next run to the same output removes it and starts clean.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_compete.errors import CompeteError


def check_output(output: Path, source: Path, force: bool, mark: str) -> None:
    """Refuse an output that is in the way.

    Args:
        source: what is converted; the output may not hold it.
        force: an earlier output of the same kind may be replaced.
        mark: file by which such an output is known.
    Raises:
        CompeteError: the folder exists, or is something else.
    """
    target = output.resolve()
    if target == source.resolve() or target in source.resolve().parents:
        raise CompeteError(f"--output {output} holds the checkpoint: choose another folder")
    if not os.path.lexists(output):
        return
    if not force:
        raise CompeteError(f"--output {output} exists: choose another folder, or replace it with --force")
    is_ours = target.is_dir() and ((target / mark).is_file() or not any(target.iterdir()))
    if not is_ours or output.is_symlink():
        raise CompeteError(f"--output {output} is not a converted model ({mark} is missing): remove it yourself")


@contextmanager
def whole_or_nothing(output: Path) -> Iterator[Path]:
    """A folder beside the output that takes its place when the block ends well, and vanishes when it does not.

    Raises:
        CompeteError: another process is writing the same output.
    """
    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    staged = output.parent / f".{output.name}.partial"
    with _locked(staged, output):
        try:
            yield staged
            _take_place(staged, output)
        finally:
            shutil.rmtree(staged, ignore_errors=True)


@contextmanager
def _locked(staged: Path, output: Path) -> Iterator[None]:
    """An empty folder `staged` that this process alone writes to."""
    staged.mkdir(exist_ok=True)
    handle = os.open(staged, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CompeteError(f"--output {output} is being written by another process ({staged} is locked)") from None
        _empty(staged)
        yield
    finally:
        os.close(handle)  # the lock goes with it


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _take_place(staged: Path, output: Path) -> None:
    """Rename; an earlier output steps aside first and is removed after, so that one of the two is always there."""
    old = output.parent / f".{output.name}.old"
    if output.exists():
        shutil.rmtree(old, ignore_errors=True)
        output.rename(old)
    staged.rename(output)
    shutil.rmtree(old, ignore_errors=True)
