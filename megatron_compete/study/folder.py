"""The folder of a study, and of each of its runs.

OUT/
  study.yaml                  the configuration
  corpus/                     text, tokenizer, datasets
  runs/VARIANT/seed-N/        finished.json, probe.jsonl, scalars.csv: the raw logs, a few hundred KB at most
  runs/VARIANT/seed-N/work/   recipe, output, checkpoints, TensorBoard: only needed until the run is finished
  superseded/                 runs of other settings that stood in the way
  report.md, report.html, table.csv, table.md, headroom.csv, comparisons.csv, curves.csv, *.png
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_compete.common.files import try_lock, write_whole

FINISHED, STARTED = "finished.json", "started.json"


@dataclass(frozen=True)
class RunFolder:
    """One run's files."""

    path: Path

    @property
    def work(self) -> Path:
        """What may go when the run is finished."""
        return self.path / "work"

    @property
    def probe_log(self) -> Path:
        return self.path / "probe.jsonl"

    @property
    def scalars(self) -> Path:
        return self.path / "scalars.csv"

    @property
    def log(self) -> Path:
        """The trainer's output."""
        return self.work / "output.log"

    @property
    def upcycled(self) -> Path:
        """Of a start: the mixture made of it."""
        return self.work / "upcycled"

    @property
    def weights(self) -> Path:
        """Of a start of `task: regions`: its student."""
        return self.work / "weights.pt"

    def model(self, task: str) -> Path:
        """Of a start: what variants begin from."""
        return self.weights if task == "regions" else self.upcycled

    def finished(self) -> dict[str, Any] | None:
        """What was written when the run was complete; None until then."""
        return read_json(self.path / FINISHED)

    def started(self) -> dict[str, Any] | None:
        """What was written when it was begun."""
        return read_json(self.work / STARTED)

    def lock(self) -> int | None:
        """Take the run for this process and whoever inherits the descriptor; None where another has it.

        `flock` itself and not filelock, which does not give out the descriptor that the trainer inherits.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        return try_lock(self.work / "lock")

    def set_aside(self, target: Path) -> None:
        """Move everything to `target`; the place is free afterwards."""
        number = 1
        while (place := target.with_name(f"{target.name}-{number}")).exists():
            number += 1
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(self.path, place)

    def clear_work(self, keep: tuple[str, ...] = ()) -> None:
        """Delete checkpoints, TensorBoard's files and caches; the output stays."""
        for name in ("checkpoints", "tensorboard", "cache"):
            if name not in keep:
                shutil.rmtree(self.work / name, ignore_errors=True)


def read_json(path: Path) -> dict[str, Any] | None:
    """The file's content, None where there is no file."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        return content
    except FileNotFoundError:
        return None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write the file whole or not at all."""
    write_whole(path, json.dumps(content, indent=1, sort_keys=True) + "\n")
