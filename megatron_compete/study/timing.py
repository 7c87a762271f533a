"""What a step of each variant costs, measured apart from training: a few steps of one variant after another, in rounds.

Hours of training meet other load on the machine, and runs side by side share its caches. Here nothing of the study runs
beside the steps that are timed, a slow minute hits neighbouring variants alike, and who begins moves from round to
round. Every round has a schedule of its own, because sixty steps hold more or fewer competing ones by chance.

OUT/timing/VARIANT.json     seconds of a step by clock, one number a round: a raw log like those of the runs
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from megatron_compete.common.errors import CompeteError
from megatron_compete.study import launch, run_files
from megatron_compete.study.config import CLOCKS, Study
from megatron_compete.study.corpus import PreparedCorpus
from megatron_compete.study.folder import RunFolder, read_json, write_json
from megatron_compete.study.grid import Run, code_version, digest, timed_run
from megatron_compete.study.logs import RunLog

POLL_SECONDS = 0.1


def measure(
    study: Study, variants: Sequence[str], folder: Path, corpus: PreparedCorpus, warm: bool, say: Callable[[str], None]
) -> None:
    """Time the variants that have no timing yet, all of a round before the next.

    Args:
        warm: fork single-rank CPU runs from a warm process.
    Raises:
        CompeteError: a run that failed; nothing is written then.
    """
    timing = study.timing
    assert timing is not None, "the study has no timing"
    markers = {name: _marker(study, name, corpus) for name in variants}
    missing = [name for name in variants if not _is_there(folder, name, markers[name])]
    if missing:
        say(f"timing {len(missing)} variants, {timing.rounds} rounds of {timing.steps} steps: leave the machine alone")
    seconds: dict[str, dict[str, list[float]]] = {name: {clock: [] for clock in CLOCKS} for name in missing}
    for number in range(timing.rounds):
        for name in _rotated(missing, number * len(missing) // timing.rounds):
            found = _time(timed_run(study, name, study.seeds[0] + number), study, folder, corpus, warm)
            for clock, value in found.items():
                seconds[name][clock].append(value)
            say(f"{name}: {found[study.clock] * 1e3:.1f} ms a step, round {number + 1}")
    for name, found_of in seconds.items():
        write_json(folder / "timing" / f"{name}.json", markers[name] | {"seconds_per_step": found_of})


def _marker(study: Study, name: str, corpus: PreparedCorpus) -> dict[str, Any]:
    run = timed_run(study, name, study.seeds[0])
    return {"digest": digest(run, study, corpus.digest), "code": code_version()}


def _is_there(folder: Path, name: str, marker: Mapping[str, Any]) -> bool:
    found = read_json(folder / "timing" / f"{name}.json")
    return found is not None and found["digest"] == marker["digest"]


def _rotated(names: list[str], by: int) -> list[str]:
    return names[by:] + names[:by]


def _time(run: Run, study: Study, folder: Path, corpus: PreparedCorpus, warm: bool) -> dict[str, float]:
    """Seconds of a step by clock, the first `skip` steps left out."""
    timing, task = study.timing, study.task
    assert timing is not None, "the study has no timing"
    place = RunFolder(folder / "timing" / "work" / run.variant)
    lock = place.lock()
    if lock is None:
        raise CompeteError(f"{place.path} is in use: another process times this study; wait for it to end")
    place.probe_log.unlink(missing_ok=True)
    job = launch.start(run_files.placed_recipe(run, place, corpus, None, task), place, lock, warm, task)
    try:
        while (code := job.exit_code()) is None:
            time.sleep(POLL_SECONDS)
    except BaseException:
        job.end()
        raise
    if code != 0 or not run_files.is_complete(run, place):
        raise CompeteError(f"{run.variant} could not be timed: exit code {code}; {place.log} ends: {run_files.last_words(place)}")  # fmt: skip
    at = {line["step"]: line for line in run_files.probe_lines(place)}
    first, last = at[timing.skip], at[run.steps]
    place.clear_work()
    return {clock: (last[f"{clock}_seconds"] - first[f"{clock}_seconds"]) / timing.steps for clock in CLOCKS}


def read_timing(study: Study, folder: Path) -> dict[str, float]:
    """{variant: seconds of a step by the study's clock}, the median over rounds, of those that were timed."""
    found = {name: read_json(folder / "timing" / f"{name}.json") for name in study.variants}
    return {name: median(one["seconds_per_step"][study.clock]) for name, one in found.items() if one is not None}


def with_timing(study: Study, logs: Mapping[str, Sequence[RunLog]], timing: Mapping[str, float]) -> dict[str, list[RunLog]]:  # fmt: skip
    """The logs with seconds as they were timed, which all of their variants must have been."""
    return {
        name: [
            replace(run, seconds=run.seconds | {study.clock: {step: step * timing[name] for step in run.loss}})
            for run in runs
        ]
        for name, runs in logs.items()
    }
