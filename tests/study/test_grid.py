"""The grid: which runs, in which order, and when a run counts as another one."""

from pathlib import Path
from typing import Any

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.study import grid
from megatron_compete.study.grid import chosen, digest, runs_of
from tests.study.fabricated import CONTENT, study_of

UPCYCLED: dict[str, Any] = {
    "starts": {"dense": {"steps": 5, "upcycle": {"experts": 8}, "arguments": {"lr": 0.5}}},
    "variants": CONTENT["variants"] | {"late": {"start": "dense", "arguments": {"compete-rate": 0.5}}},
}


def test_all_variants_of_a_seed_come_before_the_next(tmp_path: Path) -> None:
    study = study_of(tmp_path, finalists={"variants": ["topk"], "seeds": [1, 2, 3, 9]})
    names = [run.name for run in runs_of(study)]
    assert names[:4] == ["topk/seed-1", "paper/seed-1", "slow/seed-1", "topk/seed-2"]
    assert names[-1] == "topk/seed-9" and len(names) == 10


def test_a_seed_is_the_same_for_all_variants(tmp_path: Path) -> None:
    for run in runs_of(study_of(tmp_path)):
        assert run.recipe.arguments["seed"] == run.recipe.arguments["compete-seed"] == run.seed
        assert run.recipe.arguments["train-iters"] == 40
    rates = {run.variant: run.recipe.arguments.get("compete-rate") for run in runs_of(study_of(tmp_path))}
    assert rates == {"topk": None, "paper": 0.07, "slow": 1.0}


def test_a_start_is_a_dense_run_before_what_begins_from_it(tmp_path: Path) -> None:
    runs = {run.name: run for run in runs_of(study_of(tmp_path, **UPCYCLED))}
    names = list(runs)
    assert names.index("dense/seed-2") == names.index("late/seed-2") - 1
    dense = runs["dense/seed-2"]
    assert dense.is_start and dense.steps == 5 and dense.recipe.arguments["lr"] == 0.5
    assert "--num-experts" not in dense.recipe.command() and runs["late/seed-2"].start == "dense/seed-2"


def test_only_takes_variants_runs_and_their_starts(tmp_path: Path) -> None:
    runs = runs_of(study_of(tmp_path, **UPCYCLED))
    assert [run.name for run in chosen(runs, ["late/seed-3"])] == ["dense/seed-3", "late/seed-3"]
    assert {run.variant for run in chosen(runs, ["topk", "slow"])} == {"topk", "slow"}
    assert chosen(runs, []) == runs
    with pytest.raises(CompeteError, match="--only lat is no run of this study"):
        chosen(runs, ["lat"])


REGIONS: dict[str, Any] = {
    "task": "regions",
    "starts": {"half": {"steps": 5, "arguments": {"router": "topk", "num-experts": 4}}},
    "variants": {
        "topk": {"arguments": {"router": "topk"}},
        "grown": {"start": "half", "arguments": {"grow-noise": 0.1}},
    },
    "timing": {"steps": 20},
}


def test_a_start_of_the_regions_task_keeps_its_experts(tmp_path: Path) -> None:
    runs = {run.name: run for run in runs_of(study_of(tmp_path, **REGIONS))}
    half = runs["half/seed-1"]
    assert half.is_start and half.recipe.arguments["num-experts"] == 4 and half.recipe.arguments["moe-router-topk"] == 2
    assert "save-interval" not in half.recipe.arguments and runs["grown/seed-1"].start == "half/seed-1"


def test_the_regions_task_probes_as_many_inputs_as_it_does_by_itself(tmp_path: Path) -> None:
    (left_out, *_), (given, *_) = (
        runs_of(study_of(tmp_path, **REGIONS, probe=probe)) for probe in ({"interval": 10}, {"sequences": 9})
    )
    assert "probe-sequences" not in left_out.recipe.arguments and given.recipe.arguments["probe-sequences"] == 9


def test_steps_of_a_grown_student_are_timed_from_scratch(tmp_path: Path) -> None:
    assert "grow-noise" not in grid.timed_run(study_of(tmp_path, **REGIONS), "grown", 1).recipe.arguments


def digests(folder: Path, corpus: str = "text", **changes: Any) -> dict[str, str]:
    study = study_of(folder, **(UPCYCLED | changes))
    return {run.name: digest(run, study, corpus) for run in runs_of(study)}


def changed(one: dict[str, str], other: dict[str, str]) -> set[str]:
    return {name.split("/")[0] for name in one if one[name] != other[name]}


def test_a_digest_follows_what_decides_about_the_result(tmp_path: Path) -> None:
    base = digests(tmp_path)
    assert len(set(base.values())) == len(base)
    assert not changed(base, digests(tmp_path, title="other", jobs=4, baseline="paper"))
    assert changed(base, digests(tmp_path, corpus="other text")) == {"topk", "paper", "slow", "dense", "late"}
    relabelled = UPCYCLED["variants"] | {"paper": {"label": "new", "arguments": {"compete-rate": 0.07}}}
    assert not changed(base, digests(tmp_path, variants=relabelled))
    variants = UPCYCLED["variants"] | {"paper": {"arguments": {"compete-rate": 0.08}}}
    assert changed(base, digests(tmp_path, variants=variants)) == {"paper"}
    noisy = {"dense": UPCYCLED["starts"]["dense"] | {"upcycle": {"experts": 8, "noise": 0.1}}}
    assert changed(base, digests(tmp_path, starts=noisy)) == {"late"}
    longer = {"dense": UPCYCLED["starts"]["dense"] | {"steps": 6}}
    assert changed(base, digests(tmp_path, starts=longer)) == {"dense", "late"}


def test_comments_and_docstrings_are_no_other_code() -> None:
    one = 'def f(x):\n    """Doc."""\n    return x + 1  # why\n'
    assert grid._meaning(one) == grid._meaning('"""Head."""\n\ndef f(x):\n    "Other."\n    return (x + 1)\n')
    assert grid._meaning(one) != grid._meaning("def f(x):\n    return x + 2\n")
    assert len(grid.code_version()) == 16
