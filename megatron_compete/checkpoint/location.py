"""Where a checkpoint lies: a `--save` folder with its tracker file, or one iteration's folder."""

import json
from pathlib import Path

from megatron_compete.common.errors import CompeteError

TRACKER = "latest_checkpointed_iteration.txt"
"""Written by Megatron's trainer after a save is complete (megatron/training/checkpointing.py)."""

CONFIG = "metadata.json"
"""Names the format; Megatron writes it after everything else (megatron/core/dist_checkpointing/serialization.py)."""

METADATA = ".metadata"
"""Index of torch.distributed.checkpoint: which tensor lies where."""

RELEASE = "release"
MOST_DIGITS = 18
"""Of an iteration; more is damage."""


def find_checkpoint(folder: Path, iteration: int | None = None) -> Path:
    """Folder of one whole `torch_dist` checkpoint.

    Args:
        folder: what `--save` named, or `iter_0001000` inside it.
        iteration: which one; None takes the tracker's.
    Raises:
        CompeteError: nothing there, another format, or a save that did not finish.
    """
    if not folder.is_dir():
        raise CompeteError(f"--checkpoint {folder}: no such folder")
    if _is_iteration(folder):
        if iteration is not None and folder.name != _iteration_name(iteration):
            raise CompeteError(f"--iteration {iteration} and --checkpoint {folder} disagree: leave one out")
        found = folder
    elif iteration is not None:
        found = folder / _iteration_name(iteration)
        if not found.is_dir():
            raise CompeteError(f"--iteration {iteration}: {folder} has {_iterations(folder)}")
    else:
        found = folder / _tracked(folder)
        if not found.is_dir():
            raise CompeteError(
                f"{folder / TRACKER} names {found.name}, which is not there; it has {_iterations(folder)}"
            )
    _check_whole(found)
    return found


def _iteration_name(iteration: int) -> str:
    return f"iter_{iteration:07d}"


def _is_iteration(folder: Path) -> bool:
    if (folder / TRACKER).exists():
        return False
    return folder.name.startswith("iter_") or (folder / CONFIG).exists() or (folder / METADATA).exists()


def _tracked(folder: Path) -> str:
    tracker = folder / TRACKER
    if not tracker.is_file():
        raise CompeteError(
            f"--checkpoint {folder}: no checkpoint here ({TRACKER} is missing; it has {_iterations(folder)}): give the "
            "folder that was --save, or one of its iter_XXXXXXX folders"
        )
    text = tracker.read_text(errors="replace").strip()
    if text == RELEASE:
        return RELEASE
    if not text.isdecimal() or len(text) > MOST_DIGITS:
        raise CompeteError(f"{tracker} holds {text[:40]!r} instead of an iteration: give --iteration")
    return _iteration_name(int(text))


def _iterations(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name.startswith("iter_"))
    return ", ".join(names[-5:]) or "no iter_XXXXXXX folder"


def _check_whole(folder: Path) -> None:
    if not (folder / CONFIG).is_file():
        raise CompeteError(f"{folder}: {_why_no_config(folder)}")
    try:
        backend = json.loads((folder / CONFIG).read_text())["sharded_backend"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CompeteError(f"{folder / CONFIG} is not a Megatron checkpoint's: sharded_backend is not in it") from None
    if backend != "torch_dist":
        raise CompeteError(
            f"{folder} has the format {backend}: only torch_dist can be read, save with --ckpt-format torch_dist"
        )
    if not (folder / METADATA).is_file():
        raise CompeteError(f"{folder} is damaged: {METADATA}, the index of its tensors, is missing")


def _why_no_config(folder: Path) -> str:
    if any(folder.glob("mp_rank_*")):
        return (
            "a checkpoint in the format torch (mp_rank_* folders): only torch_dist can be read, "
            "save with --ckpt-format torch_dist, or convert with --ckpt-convert-format torch_dist"
        )
    if (folder / METADATA).exists():
        return f"a save that did not finish, or --ckpt-format torch_dcp or fsdp_dtensor ({CONFIG} is missing)"
    if any(folder.iterdir()):
        return f"a save that did not finish, or no checkpoint at all ({CONFIG}, which is written last, is missing)"
    return "the folder is empty"
