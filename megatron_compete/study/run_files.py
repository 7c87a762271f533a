"""A run's recipe in its folder, and what is kept of its logs when it is complete."""

import copy
import csv
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from megatron_compete.common.errors import CompeteError
from megatron_compete.launch.recipe import Recipe
from megatron_compete.report.scalars import Scalars, logged_scalars
from megatron_compete.study.config import Study
from megatron_compete.study.corpus import PreparedCorpus
from megatron_compete.study.folder import FINISHED, RunFolder, write_json
from megatron_compete.study.grid import Run

LOSS = "lm loss"
KEPT = "competition/"
"""Scalars that are kept beside the loss; those of single layers are not."""


def placed_recipe(
    run: Run, folder: RunFolder, corpus: PreparedCorpus, start: RunFolder | None, task: str = "language"
) -> Recipe:
    """The run's recipe with its data and folders."""
    recipe = copy.deepcopy(run.recipe)
    work = folder.work
    if task == "regions":
        recipe.arguments["probe-log"] = str(folder.probe_log)
        if run.is_start:
            recipe.arguments["save"] = str(folder.weights)
        if start is not None:
            recipe.arguments["initial"] = str(start.weights)
        return recipe
    recipe.arguments |= corpus.arguments() if corpus.tokenizer else {"data-path": corpus.train, "split": "100,0,0"}
    recipe.arguments |= {
        "probe-log": str(folder.probe_log),
        "probe-data": corpus.heldout,
        "tensorboard-dir": str(work / "tensorboard"),
        "data-cache-path": str(work / "cache"),
    }
    if "save-interval" in recipe.arguments:
        recipe.arguments |= {name: str(work / "checkpoints") for name in ("save", "load")}
    if start is not None:
        recipe.arguments["pretrained-checkpoint"] = str(start.upcycled)
    return recipe


def probe_lines(folder: RunFolder) -> list[dict[str, Any]]:
    """The probe's lines so far; half a line at the end, of a job that was killed, does not count."""
    lines = []
    for text in folder.probe_log.read_text().splitlines() if folder.probe_log.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def is_complete(run: Run, folder: RunFolder) -> bool:
    """Whether the probe saw the last step."""
    lines = probe_lines(folder)
    return bool(lines) and lines[-1]["step"] == run.steps


def finish(run: Run, folder: RunFolder, marker: dict[str, Any]) -> None:
    """Keep what the report needs and mark the run as finished."""
    scalars = logged_scalars(folder.work / "tensorboard")
    write_scalars(folder.scalars, scalars, [line["step"] for line in probe_lines(folder)])
    write_json(folder.path / FINISHED, marker | {"arguments": run.recipe.arguments, "steps": run.steps})


def write_scalars(path: Path, scalars: Scalars, probed: list[int]) -> None:
    """Means of the trainer's scalars between two probes, with the number of steps at which there was a value."""
    names = [name for name in sorted(scalars) if name == LOSS or (name.startswith(KEPT) and "/layer-" not in name)]
    with path.open("w", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["scalar", "step", "mean", "values"])
        for name in names:
            for before, step in pairwise(probed):
                values = [value for at, value in sorted(scalars[name].items()) if before < at <= step]
                if values:
                    table.writerow([name, step, repr(sum(values) / len(values)), len(values)])


def make_start(folder: RunFolder, study: Study, run: Run) -> None:
    """Turn a finished dense model into the mixture that variants start from; a student is what they grow themselves."""
    if study.task == "regions":
        return
    from megatron_compete.checkpoint.import_hf import Import, import_checkpoint
    from megatron_compete.checkpoint.upcycle import Upcycling

    how = study.starts[run.variant].upcycle
    assert how is not None, "a language model's start says how"
    upcycling = Upcycling(
        how.experts, how.top_k, how.granularity, how.noise, seed=run.seed, inexact=how.noise > 0
    )  # with noise the function is not kept, which is what was asked for
    import_checkpoint(Import(folder.work / "checkpoints", folder.upcycled, source="megatron", force=True, upcycling=upcycling))  # fmt: skip


def last_words(folder: RunFolder, lines: int = 3) -> str:
    """The end of a run's output; of bad input its one line."""
    text = folder.log.read_text(errors="replace") if folder.log.exists() else ""
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    return errors[-1] if errors else "\n".join(text.splitlines()[-lines:])


def missing_start(run: Run) -> CompeteError:
    """For a run whose start's checkpoint was deleted."""
    return CompeteError(f"{run.name} starts from {run.start}, whose model is gone: delete that run's folder to train it again")  # fmt: skip
