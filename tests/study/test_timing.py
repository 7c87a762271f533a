"""What steps cost, measured apart from training, with jobs that only pretend to train."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.launch.recipe import Recipe
from megatron_compete.study import launch
from megatron_compete.study.config import Study
from megatron_compete.study.corpus import PreparedCorpus
from megatron_compete.study.folder import RunFolder
from megatron_compete.study.report import write_report
from megatron_compete.study.timing import measure, read_timing
from tests.study.fabricated import study_of, write_logs

CORPUS = PreparedCorpus("train", "heldout", {}, "digest")
COST = {"topk": 1.0, "paper": 1.5, "slow": 3.0}
"""Seconds a step."""


class Pretence:
    """A job that is over at once; its first steps took five times as long as the others."""

    def __init__(self, recipe: Recipe, folder: RunFolder, code: int) -> None:
        self.code = code
        steps, every = (int(str(recipe.arguments[name])) for name in ("train-iters", "probe-interval"))
        assert "save" not in recipe.arguments, "a checkpoint would be timed"
        cost = COST[folder.path.name] * (1 + 0.1 * int(str(recipe.arguments["seed"])))
        seconds = {0: 0.0} | {step: cost * (step + 4 * every) for step in range(every, steps + 1, every)}
        lines = [{"step": at, "processor_seconds": taken, "wall_seconds": 2 * taken} for at, taken in seconds.items()]
        folder.probe_log.write_text("".join(json.dumps(line) + "\n" for line in lines))
        folder.log.write_text("error: out of luck\n" if code else "")

    def exit_code(self) -> int:
        return self.code

    def end(self) -> None: ...


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Variants that were timed, in order."""
    started: list[str] = []

    def start(recipe: Recipe, folder: RunFolder, lock: int, warm: bool, task: str) -> Pretence:
        os.close(lock)
        started.append(folder.path.name)
        return Pretence(recipe, folder, 1 if recipe.arguments.get("lr") == "bad" else 0)

    monkeypatch.setattr(launch, "start", start)
    return started


def timed_study(folder: Path, **changes: Any) -> Study:
    return study_of(folder, timing={"steps": 20, "rounds": 3}, **changes)


def test_rounds_take_turns_and_the_first_steps_do_not_count(tmp_path: Path, jobs: list[str]) -> None:
    study = timed_study(tmp_path)
    measure(study, list(study.variants), tmp_path, CORPUS, warm=False, say=lambda text: None)
    assert jobs == ["topk", "paper", "slow", "paper", "slow", "topk", "slow", "topk", "paper"]
    assert read_timing(study, tmp_path) == pytest.approx({"topk": 1.2, "paper": 1.8, "slow": 3.6})
    raw = json.loads((tmp_path / "timing/paper.json").read_text())
    assert raw["seconds_per_step"]["wall"] == pytest.approx([3.3, 3.6, 3.9])


def test_what_is_timed_is_not_timed_again(tmp_path: Path, jobs: list[str]) -> None:
    study = timed_study(tmp_path)
    measure(study, ["topk", "paper"], tmp_path, CORPUS, warm=False, say=lambda text: None)
    jobs.clear()
    measure(study, list(study.variants), tmp_path, CORPUS, warm=False, say=lambda text: None)
    assert jobs == ["slow"] * 3
    jobs.clear()
    other = timed_study(tmp_path, arguments={"num-experts": 4, "moe-router-topk": 2})
    measure(other, ["topk"], tmp_path, CORPUS, warm=False, say=lambda text: None)
    assert jobs == ["topk"] * 3


def test_a_failure_is_named_and_leaves_no_timing(tmp_path: Path, jobs: list[str]) -> None:
    study = timed_study(tmp_path, variants={"topk": {}, "paper": {"arguments": {"lr": "bad"}}})
    with pytest.raises(CompeteError, match=r"paper could not be timed: exit code 1.*error: out of luck"):
        measure(study, list(study.variants), tmp_path, CORPUS, warm=False, say=lambda text: None)
    assert not list((tmp_path / "timing").glob("*.json"))


def test_the_table_takes_seconds_from_the_timing_if_all_variants_have_it(tmp_path: Path, jobs: list[str]) -> None:
    study = timed_study(tmp_path)
    write_logs(study, tmp_path, cost={"slow": 2.0})
    measure(study, ["topk", "slow"], tmp_path, CORPUS, warm=False, say=lambda text: None)
    write_report(study, tmp_path)
    assert re.search(r"\| slow \| 3 \| .* 2.00x \|\n", (tmp_path / "table.md").read_text())
    measure(study, ["paper"], tmp_path, CORPUS, warm=False, say=lambda text: None)
    write_report(study, tmp_path)
    assert re.search(r"\| slow \| 3 \| .* 3.00x \|\n", (tmp_path / "table.md").read_text())
    assert "of 20 steps measured with nothing beside them, median of 3 rounds" in (tmp_path / "report.md").read_text()


def test_steps_that_the_probe_would_miss_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CompeteError, match=r"timing.steps is 25: make it a multiple of 10"):
        study_of(tmp_path, timing={"steps": 25})
