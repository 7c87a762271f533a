"""The recipes of `examples/routers`: one for each router, and each a job that Megatron accepts."""

from pathlib import Path

import pytest

from megatron_compete.launch.recipe import read_recipe
from megatron_compete.moe.baselines import BASELINES
from megatron_compete.plan.job import read_job

RECIPES = sorted((Path(__file__).resolve().parents[2] / "examples" / "routers").glob("*.yaml"))


def test_every_baseline_has_a_recipe() -> None:
    assert {path.stem for path in RECIPES} == {"topk", "sigmoid", "shared-v2", "shared-v3", *BASELINES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_job(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.arguments["router"] == (path.stem if path.stem in BASELINES else "topk")
    read_job(recipe, 4)
