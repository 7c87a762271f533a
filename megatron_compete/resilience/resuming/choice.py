"""Which checkpoint a run starts from: the one that the tracker names if it is whole, else the newest whole one before it.

Megatron loads what `latest_checkpointed_iteration.txt` names and trips over what is damaged: a kill during its write
leaves the file empty, a copy that was cut short leaves truncated shards. Here rank 0 inspects before anything is loaded
(`checkpoint/integrity.py`; sizes and the index, no tensor is read) and all ranks load what it chose.

Damaged folders in the run's own `--save` folder are set aside under another name, so that nothing loads or overwrites
them; a folder that is only loaded from stays as it is. Only `torch_dist` checkpoints are inspected.
"""

import argparse
import contextlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron.core.transformer.module import MegatronModule
from megatron.training import checkpointing
from megatron.training.utils import print_rank_0

from megatron_compete.checkpoint.integrity import inspect_torch_dist
from megatron_compete.checkpoint.location import CONFIG, RELEASE, TRACKER, find_checkpoint
from megatron_compete.common.errors import CompeteError
from megatron_compete.common.files import rename, write_whole
from megatron_compete.resilience.agreement import on_rank_0
from megatron_compete.upstream import Replacement, wrap_symbol

DAMAGED = ".damaged"
"""Appended to the name of a folder that is set aside."""

NO_DAMAGE = (" is foreign: ", "nothing of it was run: it asks for ")
"""What `inspect_torch_dist` finds that keeps no trainer from loading."""

SHOWN = 3
"""Problems of one checkpoint that are written out."""


@dataclass
class Choice:
    """What to load from a folder, and what to say about it."""

    iteration: int | None = None
    """None: what Megatron finds by itself, which is the tracker's, or a fresh start."""
    tracker_is_readable: bool = True
    lines: list[str] = field(default_factory=list)


def choose_on_resume(
    model: list[MegatronModule], args: argparse.Namespace, running: contextlib.ExitStack
) -> list[MegatronModule]:
    """Settle what is loaded; a hook that Megatron calls when the model is built and nothing is loaded yet.

    Args:
        running: closed when the run ends.
    Raises:
        CompeteError: on every rank; checkpoints are there, and none that may be loaded is whole.
    """
    folder = on_rank_0(lambda: load_folder(args))
    if folder is None or args.ckpt_format != "torch_dist":
        return model
    own = args.save is not None and os.path.realpath(args.save) == os.path.realpath(folder)
    choice = on_rank_0(lambda: choose(folder, args.ckpt_step, set_aside=own))
    for line in choice.lines:
        print_rank_0(f"megatron-compete: {line}")
    if choice.iteration is not None:
        args.ckpt_step = choice.iteration
        if not choice.tracker_is_readable:
            running.enter_context(_answer_for_tracker(folder / TRACKER, choice.iteration))
    return model


def load_folder(args: argparse.Namespace) -> Path | None:
    """The folder that Megatron will load from: `--load`, or `--pretrained-checkpoint` as long as that has none."""
    pretrained = getattr(args, "pretrained_checkpoint", None)
    if args.load is not None and (pretrained is None or checkpointing.checkpoint_exists(args.load)):
        return Path(args.load)
    return Path(pretrained) if pretrained is not None else None


def choose(folder: Path, step: int | None = None, set_aside: bool = False) -> Choice:
    """Choose a whole checkpoint in `folder`, which has the form of a `--save` folder.

    Args:
        step: the user's `--ckpt-step`; it is that one or an error.
        set_aside: rename damaged checkpoints and fix the tracker.
    Raises:
        CompeteError: no whole checkpoint to load, although some were completed once.
    """
    if not folder.is_dir() or _is_legacy(folder):
        return Choice()
    if step:
        return _choose_step(folder, step)
    named, trouble = _tracked(folder)
    iterations = iterations_in(folder)
    if named is None and not iterations:
        if trouble is None:
            return Choice()
        raise CompeteError(f"{trouble}, and {folder} has no checkpoint: give another --load, or empty the folder")
    if named == RELEASE:
        return _choose_release(folder)
    return _choose_newest(folder, named, trouble, iterations, set_aside)


def iterations_in(folder: Path) -> list[int]:
    """Iterations of which the folder has a checkpoint, whole or not, ascending."""
    found = (re.fullmatch(r"iter_(\d{7,})", path.name) for path in folder.iterdir() if path.is_dir())
    return sorted(int(match[1]) for match in found if match)


def problems_of(checkpoint: Path) -> list[str]:
    """What is wrong with one iteration's folder; empty if it can be loaded.

    A file that the index does not name is no problem here: nothing reads it. An index with classes that are not
    unpickled here (another writer's extras) is no sign of damage: Megatron will tell.
    """
    try:
        found = inspect_torch_dist(find_checkpoint(checkpoint))
    except CompeteError as error:
        return [str(error)]
    return [problem for problem in found.problems if not any(sign in problem for sign in NO_DAMAGE)]


def rename_aside(path: Path, suffix: str = DAMAGED) -> Path:
    """Give `path` a name of its own with `suffix`; nothing is overwritten."""
    number = 1
    while (target := path.with_name(f"{path.name}{suffix}{f'-{number}' if number > 1 else ''}")).exists():
        number += 1
    rename(path, target)
    return target


def iteration_folder(folder: Path, iteration: int) -> Path:
    return folder / f"iter_{iteration:07d}"


def _is_legacy(folder: Path) -> bool:
    """A checkpoint in Megatron's old format (mp_rank_* folders), which cannot be inspected."""
    return any(True for _ in folder.glob("*/mp_rank_*"))


def _tracked(folder: Path) -> tuple[int | str | None, str | None]:
    """What the tracker names, and what is wrong with the tracker itself."""
    path = folder / TRACKER
    if not path.is_file():
        return None, None
    text = path.read_text(errors="replace").strip()
    if text == RELEASE:
        return RELEASE, None
    if text.isdecimal():
        return int(text), None
    return None, f"{path} is empty" if not text else f"{path} holds {text[:40]!r} instead of an iteration"


def _choose_step(folder: Path, step: int) -> Choice:
    checkpoint = iteration_folder(folder, step)
    if not checkpoint.is_dir():
        raise CompeteError(f"--ckpt-step {step}: {folder} has {_listed(iterations_in(folder))}")
    problems = problems_of(checkpoint)
    if problems:
        raise CompeteError(
            f"--ckpt-step {step}: {_said(checkpoint, problems)}. Name another step, or leave --ckpt-step out to start "
            "from the newest whole checkpoint"
        )
    return Choice(step, tracker_is_readable=_tracked(folder)[1] is None)


def _choose_release(folder: Path) -> Choice:
    problems = problems_of(folder / RELEASE)
    if problems:
        raise CompeteError(f"--load {folder}: {_said(folder / RELEASE, problems)}. Import or copy it again")
    return Choice()


def _choose_newest(
    folder: Path, named: int | str | None, trouble: str | None, iterations: list[int], set_aside: bool
) -> Choice:
    """The tracker's checkpoint, or the newest whole one before it, or else the newest of all."""
    lines = [] if trouble is None else [trouble]
    if named is not None and named not in iterations:
        lines.append(f"{folder / TRACKER} names iteration {named}, which is not there")
    damaged: list[Path] = []
    for iteration in _newest_first(iterations, named if isinstance(named, int) else max(iterations)):
        problems = problems_of(iteration_folder(folder, iteration))
        if not problems and iteration == named:
            return Choice()
        if not problems:
            done = _fix(folder, iteration, damaged) if set_aside else []
            lines += [*done, f"going on from iteration {iteration}, the newest whole checkpoint"]
            return Choice(iteration, trouble is None or set_aside, lines)
        damaged.append(iteration_folder(folder, iteration))
        lines.append(_said(damaged[-1], problems))
    if named is None and trouble is None and not any((path / CONFIG).exists() for path in damaged):
        return Choice(None, lines=[*lines, f"no save into {folder} was ever finished: the run starts anew"])
    raise CompeteError(
        f"--load {folder} has no whole checkpoint: {'; '.join(lines[:5])}. Restore one of them, give another --load, or "
        "start anew in an empty folder"
    )


def _newest_first(iterations: list[int], named: int) -> list[int]:
    """`named` and those before it, then those after it."""
    return sorted(iterations, key=lambda iteration: (iteration > named, -iteration))


def _fix(folder: Path, iteration: int, damaged: list[Path]) -> list[str]:
    """Set `damaged` aside and let the tracker name `iteration`; says so."""
    lines = [f"{path} is set aside as {rename_aside(path).name}" for path in damaged]
    write_whole(folder / TRACKER, str(iteration))
    return lines


def _said(checkpoint: Path, problems: Sequence[str]) -> str:
    """One line on a damaged checkpoint."""
    shown = [problem.removeprefix(f"{checkpoint}: ").removeprefix(f"{checkpoint} ") for problem in problems[:SHOWN]]
    more = f"; and {len(problems) - SHOWN} more problems" if len(problems) > SHOWN else ""
    return f"damaged checkpoint {checkpoint}: {'; '.join(shown)}{more}"


def _listed(iterations: list[int]) -> str:
    return ", ".join(map(str, iterations[-5:])) or "no checkpoint"


def _answer_for_tracker(tracker: Path, iteration: int) -> Replacement:
    """Let Megatron read `iteration` where it would stop over an unreadable tracker that may not be fixed."""

    def read(upstream: Callable[[str], Any], tracker_filename: str) -> Any:
        return (iteration, False) if tracker_filename == str(tracker) else upstream(tracker_filename)

    return wrap_symbol("megatron.training.checkpointing:read_metadata", read)
