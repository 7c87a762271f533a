"""Files that appear whole, and names of files that other files give: one way to do both.

A reader sees the old content or the new one, also after a kill or a loss of power in between: what is written lies beside
its place under another name, is on the disk before it takes its name, and the name is on the disk when the call returns.
"""

import contextlib
import os
import secrets
from pathlib import Path, PurePosixPath

from megatron_compete.errors import CompeteError


def write_whole(path: Path, content: str | bytes, mode: int | None = None) -> None:
    """Write a file so that readers see the old content or the new; makes its folder.

    Args:
        mode: permissions, such as 0o600; default what the process gives to new files.
    Raises:
        OSError: nothing was replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    data = content.encode() if isinstance(content, str) else content
    try:
        with open(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
    except BaseException:
        with contextlib.suppress(OSError):
            staged.unlink()
        raise
    sync(path.parent)


def publish(staged: Path, path: Path) -> None:
    """Give a finished file or folder its name, once all of it is on the disk.

    Args:
        path: on the same file system; a file is replaced, a folder must not be there.
    """
    sync_tree(staged)
    os.replace(staged, path)
    sync(path.absolute().parent)


def sync(path: Path | str) -> None:
    """Have a file's content, or a folder's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """`sync` of a file, or of a folder with all that is in it; symbolic links are not followed."""
    if path.is_dir() and not path.is_symlink():
        for entry in path.iterdir():
            sync_tree(entry)
    if not path.is_symlink():
        sync(path)


def path_within(folder: Path, name: str, index: str) -> Path:
    """The path of a file that an index names, which must lie in the index's folder.

    Args:
        name: what the index says, with `/` between its parts.
        index: the file that says so, for the error.
    Raises:
        CompeteError: the name is empty, absolute, leads out of the folder, or has a character that no file name has.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name or "\\" in name:
        raise CompeteError(f"{index} names the file {name!r}, which is not in its folder: do not use it")
    return folder / name
