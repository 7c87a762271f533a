"""Public recipes in small through the real trainer: competition joins each, and without competition nothing changes."""

import math
from pathlib import Path

import pytest

from megatron_compete.report.scalars import read_scalars
from tests.ranks import run_ranks
from tests.recipes.shrink import PUBLIC, STEPS, Small, shrink
from tests.training.runs import train_on_rank

COVERING = "run-dsv3-gb200.1"
"""It has most: MLA, sigmoid scores with bias and groups, shared experts, MTP in a layout, forced load, recomputed MLPs."""

RECIPES = [
    pytest.param(path, id=path.stem, marks=() if path.stem == COVERING else pytest.mark.slow)
    for path in sorted(PUBLIC.glob("*.yaml"))
]
COMPETING = {"compete_rate": 0.08, "compete_max_active_layers": 1}


def curves(small: Small, folder: Path, **more: object) -> dict[str, dict[int, float]]:
    """TensorBoard's scalars by name and iteration of one run."""
    run_ranks(small.world, train_on_rank, small.argv(tensorboard_dir=folder, **more), timeout=400)
    return read_scalars(folder)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("kind", ["response", "utility"])
def test_competes(recipe: Path, kind: str, tmp_path: Path) -> None:
    scalars = curves(shrink(recipe), tmp_path, compete_kind=kind, **COMPETING)
    losses = scalars["lm loss"]
    assert len(losses) == STEPS and all(map(math.isfinite, losses.values()))
    assert losses[STEPS] < losses[1] - 0.3
    competed = [step for step, count in scalars["competition/active-layers"].items() if count]
    assert competed and len(competed) < STEPS
    agreement = {step: scalars["competition/agreement"].get(step) for step in competed}
    assert all(value is not None and 0 < value <= 1 for value in agreement.values())


@pytest.mark.parametrize("recipe", RECIPES)
def test_without_competition_it_is_the_stock_model(recipe: Path, tmp_path: Path) -> None:
    small = shrink(recipe)
    stock = curves(small, tmp_path / "stock", router="topk", log_params_norm=True)
    never = curves(small, tmp_path / "never", compete_rate=0.0, log_params_norm=True)
    for name in ("lm loss", "grad-norm", "params-norm"):
        assert len(stock[name]) == STEPS
        assert never[name] == stock[name]
