"""A folder of output: written beside its place and put there at the end, and nothing of the user's overwritten.

What is being written lies in `.NAME.partial` beside the output, under a lock. A run that was killed leaves it behind
without the lock; the next run to the same output removes it and starts clean.

Every output, whole or not, carries `SENTINEL`: what it was made from, and each file that was written with its size. Only
a folder that has it and holds nothing else is ever removed, file by file along that list. So neither a run's folder nor
a downloaded model can be, nor an output into which someone has put something since.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_compete import __version__
from megatron_compete.common.errors import CompeteError
from megatron_compete.common.files import publish, sync_tree, try_lock, write_whole

SENTINEL = ".megatron-compete-output.json"
SHOWN = 4
"""Foreign files that an error names."""


def made_from(sources: Iterable[Path], options: Mapping[str, Any]) -> str:
    """A digest of what an output is made from: the same for the same files, options and version of this package.

    Args:
        sources: files and folders that are converted, whose files are told by path, size and time of change.
        options: of the conversion, by name.
    """
    paths = [path for source in sources for path in (sorted(source.iterdir()) if source.is_dir() else [source])]
    states = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.is_file()]
    given = sorted((name, str(value)) for name, value in options.items())
    return hashlib.sha256(json.dumps([__version__, states, given]).encode()).hexdigest()


def is_done(output: Path, made: str) -> bool:
    """Whether a conversion is there already, whole and made from the same (`made_from`); says so where it is.

    So a job that is run again, because it was stopped after its last file, goes on without --force.
    """
    if not (output / SENTINEL).is_file():
        return False
    written = _read_sentinel(output)
    if written["made_from"] != made or not written["files"].items() <= _sizes(output).items():
        return False
    print(f"{output} is there already, made from the same checkpoint with the same options; --force writes it anew")
    return True


def check_output(output: Path, source: Path, force: bool) -> None:
    """Refuse an output that is in the way.

    Args:
        source: what is converted; the output may not hold it.
        force: an earlier output may be replaced.
    Raises:
        CompeteError: the folder exists, or holds more than an earlier conversion wrote.
    """
    target = output.resolve()
    if target == source.resolve() or target in source.resolve().parents:
        raise CompeteError(f"--output {output} holds the checkpoint: choose another folder")
    if not os.path.lexists(output) or _is_empty(output):
        return
    if not force:
        raise CompeteError(
            f"--output {output} exists: choose another folder, or replace it, if it is an earlier conversion, with --force"
        )
    _check_ours(output)


@contextmanager
def whole_or_nothing(output: Path, made: str) -> Iterator[Path]:
    """A folder beside the output that takes its place when the block ends well, and vanishes when it does not.

    Args:
        made: see `made_from`.
    Raises:
        CompeteError: another process is writing the same output, or something was put into the one to be replaced.
    """
    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    staged = output.parent / f".{output.name}.partial"
    with _locked(staged, output):
        try:
            _write_sentinel(staged, None, {})
            yield staged
            _write_sentinel(staged, made, _sizes(staged))
            _take_place(staged, output)
        finally:
            if staged.exists():
                _empty(staged)
                staged.rmdir()


@contextmanager
def _locked(staged: Path, output: Path) -> Iterator[None]:
    """An empty folder `staged` that this process alone writes to."""
    staged.mkdir(exist_ok=True)
    handle = try_lock(staged)
    if handle is None:
        raise CompeteError(f"--output {output} is being written by another process ({staged} is locked)")
    try:
        if not _is_empty(staged) and not (staged / SENTINEL).is_file():
            raise CompeteError(f"{staged} is where --output {output} is made, and holds what is not ours: move it away")
        _empty(staged)
        yield
    finally:
        os.close(handle)  # the lock goes with it


def _take_place(staged: Path, output: Path) -> None:
    """Rename; an earlier output steps aside first and is removed after, so that one of the two is always there."""
    old = output.parent / f".{output.name}.old"
    sync_tree(staged)
    if old.exists():
        _remove(old)
    if output.exists() and not _is_empty(output):
        _check_ours(output)  # again: a conversion takes minutes, in which a run may have begun to save there
        output.rename(old)
    publish(staged, output)
    if old.exists():
        _remove(old)


def _check_ours(output: Path) -> None:
    """Raise a `CompeteError` where a folder was not written here, or holds anything that was not written here."""
    if output.is_symlink() or not (output / SENTINEL).is_file():
        raise CompeteError(
            f"--output {output} is not an earlier conversion ({SENTINEL} is missing): move it away, or choose another folder"
        )
    written, there = _read_sentinel(output)["files"], _sizes(output)
    foreign = sorted(name for name, size in there.items() if written.get(name) != size)
    if foreign:
        more = f" and {len(foreign) - SHOWN} more" if len(foreign) > SHOWN else ""
        raise CompeteError(
            f"--output {output} holds what the conversion did not write: {', '.join(foreign[:SHOWN])}{more}: it is not "
            "replaced; move it away, or choose another folder"
        )


def _remove(folder: Path) -> None:
    """Remove an earlier output: the files that it lists, and the folders that are then empty."""
    _check_ours(folder)
    for name in _sizes(folder):  # each is in the list, by the check
        (folder / name).unlink()
    (folder / SENTINEL).unlink()
    for inner, _, _ in os.walk(folder, topdown=False):
        os.rmdir(inner)


def _empty(staged: Path) -> None:
    """Remove what an unfinished conversion has written."""
    for inner, folders, files in os.walk(staged, topdown=False):
        for name in files:
            os.unlink(os.path.join(inner, name))
        for name in folders:
            path = os.path.join(inner, name)
            os.unlink(path) if os.path.islink(path) else os.rmdir(path)


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file below a folder but the sentinel, by path; -1 of what is no plain file."""
    found = {}
    for inner, folders, files in os.walk(folder):
        for name in [*files, *(one for one in folders if os.path.islink(os.path.join(inner, one)))]:
            path = Path(inner, name)
            plain = path.is_file() and not path.is_symlink()
            found[str(path.relative_to(folder))] = path.stat().st_size if plain else -1
    found.pop(SENTINEL, None)
    return found


def _write_sentinel(folder: Path, made: str | None, files: Mapping[str, int]) -> None:
    write_whole(folder / SENTINEL, json.dumps({"made_from": made, "files": files}, indent=1) + "\n")


def _read_sentinel(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / SENTINEL).read_text(encoding="utf-8"))
        files = content["files"]
        if not all(isinstance(name, str) and isinstance(size, int) for name, size in files.items()):
            raise TypeError
        return {"made_from": content["made_from"], "files": files}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CompeteError(f"{folder / SENTINEL} cannot be read: move {folder} away, or choose another one") from None
