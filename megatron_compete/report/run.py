"""A run as its files tell it: the run folder of a job, or a plain `--tensorboard-dir`.

Every file may be missing, cut off or still being written. What cannot be shown for that is said, never guessed.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megatron_compete.cluster.queue import Queue
from megatron_compete.cluster.run_folder import ATTEMPTS, FINISHED, JOB, RECIPE, RUNNING
from megatron_compete.cluster.status import Attempt, RunStatus, read_attempts, read_status, runs_in
from megatron_compete.common.errors import CompeteError
from megatron_compete.launch.recipe import read_recipe
from megatron_compete.launch.run_files import STEPS, Failure, read_failure, read_steps
from megatron_compete.report.event_files import PATTERN, Curve, EventFolder
from megatron_compete.vlm.layer_names import layer_name

ITERATION = re.compile(r"iter_(\d{7,})")
PROGRESS = "progress.json"
FAILURES = 200
"""Failed ranks that are shown at most: a job of many ranks leaves one for each."""


@dataclass
class Run:
    """What is known of a run at a moment."""

    name: str
    folder: Path
    events: EventFolder | None
    """None where there are no event files."""
    status: RunStatus | None
    """None of a folder that no job was submitted in."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Arguments of the trainer by name, without dashes in front: the recipe's, else those that Megatron wrote down."""
    arguments: Mapping[str, str] = field(default_factory=dict)
    """All arguments, as Megatron wrote them to TensorBoard."""
    attempts: list[Attempt] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    """steps.jsonl."""
    checkpoints: list[tuple[int, float]] = field(default_factory=list)
    """Iteration and epoch seconds of those that are there."""

    def curve(self, tag: str) -> Curve | None:
        """A scalar of TensorBoard's."""
        return None if self.events is None else self.events.curve(tag)

    def tags(self) -> list[str]:
        """Names of TensorBoard's scalars."""
        return [] if self.events is None else self.events.tags()

    def setting(self, name: str) -> str | None:
        """An argument; the resolved one where it is known."""
        return self.arguments.get(name, self.settings.get(name))

    def number(self, name: str) -> float | None:
        """An argument that is a number."""
        try:
            return float(self.setting(name) or "")
        except ValueError:
            return None

    @property
    def tower_layers(self) -> int | None:
        """Layers of a vision-language model's tower; None of a language model."""
        layers = self.number("vision-num-layers")
        return None if layers is None else int(layers)

    def layer_name(self, number: int) -> str:
        """What a layer is called: `tower 3`, `projector` or `decoder 5` in a vision-language model, else its number."""
        return layer_name(number, self.tower_layers)

    def logged(self, name: str) -> Curve | None:
        """A number of steps.jsonl by iteration, of the last attempt that logged it."""
        found = {step["iteration"]: step for step in self.steps if _is_number(step.get("iteration"))}
        rows = [(i, step.get(name), step.get("time")) for i, step in sorted(found.items())]
        rows = [(i, np.nan if value is None else value, time or np.nan) for i, value, time in rows]
        rows = [row for row in rows if all(_is_number(one) for one in row)]
        if not rows:
            return None
        iterations, values, times = zip(*rows)
        return Curve(np.array(iterations, np.int64), np.array(values, np.float64), np.array(times, np.float64))


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """The folders that are meant: of runs, of a chain's jobs, or with event files.

    Raises:
        CompeteError: one holds neither.
    """
    found: list[Path] = []
    for path in paths:
        if _has_events(path):
            found.append(path)
            continue
        try:
            found += runs_in(path)
        except CompeteError:
            if not _has_events(path / "tensorboard"):
                raise CompeteError(
                    f"{path} is no run folder and holds no event files: give one that `megatron-compete submit` wrote, or "
                    "a --tensorboard-dir"
                ) from None
            found.append(path)
    return list(dict.fromkeys(found))


class RunReader:
    """Reads runs, and again what is new of them.

    Args:
        folders: of `find_runs`.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self.folders = list(folders)
        self._events: dict[Path, EventFolder] = {}

    def read(self, queue: Queue) -> list[Run]:
        """The runs now."""
        return [self._read(folder, name, queue) for folder, name in zip(self.folders, run_names(self.folders))]

    def version(self) -> str:
        """Another text once one of the runs' files is another."""
        digest = hashlib.sha256()
        for folder in self.folders:
            for path in _watched(folder):
                try:
                    found = path.stat()
                except OSError:
                    continue
                digest.update(f"{path}\0{found.st_size}\0{found.st_mtime_ns}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]

    def _read(self, folder: Path, name: str, queue: Queue) -> Run:
        where = tensorboard_folder(folder)
        if where is not None:
            events = self._events.get(where) or self._events.setdefault(where, EventFolder(where))
            events.read()
        else:
            events = None
        arguments = {key.replace("_", "-"): value for key, value in (events.texts if events else {}).items()}
        recipe = _recipe(folder)
        return Run(
            name=name,
            folder=folder,
            events=events,
            status=read_status(folder, queue) if _is_job(folder) else None,
            settings=recipe or arguments,
            arguments=arguments,
            attempts=read_attempts(folder / ATTEMPTS),
            failures=list(_failures(folder)),
            steps=read_steps(folder),
            checkpoints=_checkpoints(folder, recipe),
        )


def run_names(folders: Iterable[Path]) -> list[str]:
    """Short names that tell the runs apart."""
    paths = [folder.resolve() for folder in folders]
    for parts in range(1, 8):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def tensorboard_folder(folder: Path) -> Path | None:
    """Where a run's event files are: where its recipe says, `tensorboard` below the folder, or the folder itself."""
    named = _recipe(folder).get("tensorboard-dir")
    places = [*([Path(named), folder / named] if named else []), folder / "tensorboard", folder]
    return next((place for place in places if _has_events(place)), None)


def _has_events(folder: Path) -> bool:
    return folder.is_dir() and any(path.is_file() for path in folder.glob(PATTERN))


def _is_job(folder: Path) -> bool:
    return any((folder / name).exists() for name in (JOB, RECIPE, ATTEMPTS, PROGRESS))


def _recipe(folder: Path) -> dict[str, str]:
    try:
        arguments = read_recipe(folder / RECIPE).arguments
    except CompeteError:
        return {}
    return {str(name): str(value) for name, value in arguments.items()}


def _failures(folder: Path) -> Iterator[Failure]:
    """The failed ranks, as they failed; a record that holds something else is passed over."""
    records = (read_failure(path) for path in sorted((folder / "failures").glob("*.json"))[:FAILURES])
    failures = [one for one in records if one is not None and _is_number(one.time) and _is_number(one.attempt)]
    yield from sorted(failures, key=lambda failure: failure.time)


def _checkpoints(folder: Path, recipe: Mapping[str, str]) -> list[tuple[int, float]]:
    save = Path(recipe.get("save") or folder / "checkpoints")
    found = []
    try:
        entries = list(os.scandir(save))
    except OSError:
        return []
    for entry in entries:
        match = ITERATION.fullmatch(entry.name)
        if match:
            found.append((int(match[1]), entry.stat().st_mtime))
    return sorted(found)


def _watched(folder: Path) -> Iterator[Path]:
    """The files that a report is made of."""
    where = tensorboard_folder(folder)
    if where is not None:
        yield from sorted(where.glob(PATTERN))
    for name in (JOB, RECIPE, ATTEMPTS, RUNNING, PROGRESS, STEPS, FINISHED):
        yield folder / name
    yield from sorted((folder / "failures").glob("*.json"))
    yield from sorted((folder / "outcomes").glob("*"))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
