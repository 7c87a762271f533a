"""The files around a save: room for it, what a failed one leaves, and a tracker that is replaced in one step."""

import io
import os
import shutil
from pathlib import Path
from typing import Any

from megatron.training import get_args

from megatron_compete.checkpoint.location import TRACKER
from megatron_compete.common.files import rename, write_whole
from megatron_compete.resilience.resuming.choice import problems_of, rename_aside
from megatron_compete.resilience.saving.causes import room

REPLACED = ".replaced"
"""Appended to a whole checkpoint's name while the same iteration is saved once more."""


class TrackerFailed(Exception):
    """The tracker could not be written; on rank 0 alone, while the others are in the save's last barrier."""


def make_room(folder: Path) -> None:
    """Nothing of the name in the way: an unfinished save is set aside, a whole one until it is replaced."""
    if folder.is_dir() and any(folder.iterdir()):
        whole = not problems_of(folder)
        aside = rename_aside(folder, REPLACED) if whole else rename_aside(folder)
        what = "a whole checkpoint of this iteration" if whole else "an unfinished save"
        print(f"megatron-compete: {folder} is {what}, set aside as {aside.name}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)


def clear_up(folder: Path) -> str:
    """Remove what a failed save left, if it can be; says what room there was, and what remains to start from."""
    free = room(folder.parent)
    shutil.rmtree(folder, ignore_errors=True)
    replaced = folder.with_name(folder.name + REPLACED)
    if replaced.exists() and not folder.exists():
        rename(replaced, folder)
    try:
        newest = int((folder.parent / TRACKER).read_text())
    except (OSError, ValueError):
        return f"{free}; there is no earlier checkpoint"
    return f"{free}; the newest checkpoint is of iteration {newest}"


def drop_replaced(folder: Path) -> None:
    """Remove the checkpoint that the one in `folder` has replaced."""
    shutil.rmtree(folder.with_name(folder.name + REPLACED), ignore_errors=True)


class AtomicTracker:
    """Megatron's file functions (`maybe_msc`), but the tracker is replaced in one step."""

    def __init__(self, upstream: Any) -> None:
        self._upstream = upstream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._upstream, name)

    def open(self, path: str, mode: str = "r", *args: Any, **named: Any) -> Any:
        if mode == "w" and os.path.basename(path) == TRACKER and not getattr(get_args(), "enable_msc", False):
            return _TrackerFile(Path(path))
        return self._upstream.open(path, mode, *args, **named)


class _TrackerFile(io.StringIO):
    """Collects what is written and puts it in place when it is closed without an error."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            try:
                write_whole(self.path, self.getvalue())
            except OSError as failure:
                raise TrackerFailed(str(failure)) from failure
        super().__exit__(kind, error, trace)
