"""`megatron-compete plan`, as a user types it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_compete.cli import main
from megatron_compete.launch.recipe import Recipe
from megatron_compete.plan.command import override_layout
from tests.plan.planned import ROOT
from tests.warm import run_warm

SMALL = ("--recipe", "examples/demo.yaml", "--vocab-size", "2000")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_warm(main, "plan", *arguments, cwd=ROOT)


def test_json_alone_is_on_stdout_and_overrides_are_in_it(tmp_path: Path) -> None:
    figure = tmp_path / "plan.svg"
    result = subprocess.run(
        [
            sys.executable, "-m", "megatron_compete", "plan", *SMALL, "--gpus", "64", "--gpu", "h200", "--pp", "4",
            "--vp", "2", "--ep", "2", "--num-layers", "16", "--global-batch-size", "256", "--compete-rate", "0.1",
            "--json", "--figure", str(figure),
        ],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0 and result.stderr == ""
    content = json.loads(result.stdout)
    layout = content["layout"]
    assert (layout["gpu"], layout["gpus"], layout["pipeline_parallel"], layout["virtual_stages"]) == ("h200", 64, 4, 2)
    assert (layout["expert_parallel"], layout["global_batch_size"]) == (2, 256)
    assert content["competition"]["simulated_steps"] >= 1000 and content["competition"]["layers"] == 16
    assert figure.read_text().startswith("<?xml")


def test_tables_without_json() -> None:
    result = command(*SMALL)
    assert result.returncode == 0 and result.stderr == ""
    assert result.stdout.startswith("examples/demo.yaml on 4 x h100\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--recipe", "nowhere.yaml"), "--recipe nowhere.yaml cannot be read"),
        ((*SMALL, "--gpu", "h900"), "--gpu h900 is unknown: choose from"),
        ((*SMALL, "--gpus", "0"), "--gpus 0 is no number of GPUs"),
        ((*SMALL, "--no-such-flag", "3"), "unrecognized arguments: --no-such-flag 3"),
        ((*SMALL, "--figure", "plan.nope"), "--figure plan.nope: the suffix is none of"),
        ((*SMALL, "--budget", "five"), "--budget five is no overhead: give a percentage such as 5%"),
        ((*SMALL, "--budget", "5%", "--router", "topk"), "--budget looks for settings of competition"),
        ((*SMALL, "--ep", "3"), "--num-experts 8 does not divide over --expert-model-parallel-size 3"),
    ],
    ids=("recipe", "gpu", "gpus", "flag", "figure", "budget", "budget without competition", "rule"),
)
def test_what_the_user_can_fix_is_one_line(arguments: tuple[str, ...], says: str) -> None:
    result = command(*arguments)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and says in result.stderr


def test_features_instead_of_a_plan() -> None:
    result = command(*SMALL, "--features")
    assert result.returncode == 0 and result.stderr == ""
    assert "softmax scores" in result.stdout and result.stdout.endswith("the trainer takes this job\n")
    refused = command(*SMALL, "--features", "--json", "--moe-enable-routing-replay")
    assert refused.returncode == 2 and json.loads(refused.stdout)["refused"] in refused.stderr


@pytest.mark.parametrize("name", ("num-layers-per-virtual-pipeline-stage", "pipeline-model-parallel-layout"))
def test_virtual_stages_replace_the_recipes_in_whatever_form(name: str) -> None:
    recipe = Recipe(arguments={name: 2, "pipeline-model-parallel-size": 4, "num-layers": 8})
    override_layout(recipe, {"tp": 2, "vp": 2, "pp": None})
    assert recipe.arguments == {
        "pipeline-model-parallel-size": 4, "num-layers": 8,
        "tensor-model-parallel-size": 2, "num-virtual-stages-per-pipeline-rank": 2,
    }  # fmt: skip
    kept = Recipe(arguments={name: 2})
    override_layout(kept, {"tp": 2, "vp": None})
    assert kept.arguments[name] == 2
