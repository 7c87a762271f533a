"""Files and folders that appear whole, one or several together, and names of files that other files give.

A reader sees the old content or the new one, also after a kill or a loss of power in between: what is written lies beside
its place under another name, is on the disk before it takes its name, and the name is on the disk when the call returns.
"""

import contextlib
import errno
import fcntl
import functools
import os
import secrets
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import BinaryIO, Self

from megatron_compete.common.errors import CompeteError

_NO_SYNC_OF_FOLDERS = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
"""What file systems say that keep names by other means, some network ones and those in user space."""


def write_whole(path: Path, content: str | bytes, mode: int | None = None) -> None:
    """Write a file so that readers see the old content or the new; makes its folder.

    Args:
        mode: permissions, such as 0o600; default what the process gives to new files.
    Raises:
        OSError: nothing was replaced.
    """
    with open_whole(path, mode) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def open_whole(path: Path, mode: int | None = None) -> Iterator[BinaryIO]:
    """`write_whole` for what is written piece by piece: the file takes its place when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(staged, "xb", opener=functools.partial(os.open, mode=0o666 if mode is None else mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
    except BaseException:
        with contextlib.suppress(OSError):
            staged.unlink()
        raise
    sync(path.parent)


class StagedFiles:
    """A set of output files, written under temporary names in their own folders and renamed together.

    Leaving the `with` block without `commit` removes what was written, so a failed run leaves no output:

        with StagedFiles() as staged:
            write(staged.path("corpus.bin"))
            staged.commit()

    Files that existed before stay untouched until `commit`, which returns when the new ones are on the disk.

    Args:
        folder: where temporary files lie instead, under names that a later try overwrites; on the same file system.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._temporary: dict[str, str] = {}
        self._retired: list[str] = []
        self._folder = folder
        self._suffix = f".{secrets.token_hex(4)}.tmp"

    def path(self, final: str) -> str:
        """Temporary path to write `final` to; makes its folder. Files are committed in the order of these calls."""
        folder, name = os.path.split(os.path.abspath(final))
        os.makedirs(folder, exist_ok=True)
        aside = os.path.join(self._folder, name) if self._folder else os.path.join(folder, f".{name}{self._suffix}")
        return self._temporary.setdefault(final, aside)

    def retire(self, old: str) -> None:
        """Remove `old` at `commit`: it belonged to the files that are replaced, and the new set has none."""
        self._retired.append(old)

    def commit(self) -> None:
        """Put every file in its place.

        Older files of the set go first, the last of the set before the others: a crash in between leaves the set
        incomplete, which readers notice, and never a mixture of old and new, which they would not.
        """
        for temporary in self._temporary.values():
            sync(temporary)
        if len(self._temporary) + len(self._retired) > 1:
            for final in (*reversed(self._temporary), *self._retired):
                _remove(final)
        for final, temporary in self._temporary.items():
            os.replace(temporary, final)
        for folder in {os.path.dirname(os.path.abspath(final)) for final in self._temporary}:
            sync(folder)
        self._temporary.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for temporary in self._temporary.values():
            _remove(temporary)
        self._temporary.clear()


def publish(staged: Path, path: Path) -> None:
    """Give a finished file or folder its name, once all of it is on the disk.

    Args:
        path: on the same file system; a file is replaced, a folder must not be there.
    """
    sync_tree(staged)
    rename(staged, path)


def rename(path: Path, other: Path) -> None:
    """Give a file or folder another name, which is on the disk when the call returns; its content is taken as it is."""
    os.replace(path, other)
    for folder in {path.absolute().parent, other.absolute().parent}:
        sync(folder)


def sync(path: Path | str) -> None:
    """Have a file's content, or a folder's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC_OF_FOLDERS or not os.path.isdir(path):
            raise
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """`sync` of a file, or of a folder with all that is in it; symbolic links are not followed."""
    if path.is_dir() and not path.is_symlink():
        for entry in path.iterdir():
            sync_tree(entry)
    if not path.is_symlink():
        sync(path)


def try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock of a file, which is made, or of a folder; None where another process has it.

    The lock goes with the last copy of the descriptor, so a child that inherits it holds it too, and a kill frees it:
    filelock's locks end with the object that took them, and it locks no folder.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def path_within(folder: Path, name: object, index: Path | str) -> Path:
    """The path of a file that an index names, which must lie in the index's folder.

    Args:
        name: what the index says, with `/` between its parts.
        index: the file that says so, for the error.
    Raises:
        CompeteError: it is no text, empty, absolute, leads out of the folder, or has a character that no file name has.
    """
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    if not isinstance(name, str) or not parts or name.startswith("/") or ".." in parts or "\0" in name or "\\" in name:
        raise CompeteError(f"{index} names the file {name!r}, which is not in its folder: do not use it")
    return folder / name


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)
