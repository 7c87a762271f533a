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

SMALL = {path: shrink(path) for path in sorted(PUBLIC.glob("*.yaml"), reverse=True)}

RECIPES = [
    pytest.param(path, id=path.stem, marks=() if path.stem == COVERING else pytest.mark.slow)
    for path in sorted({tuple(small.argv()): path for path, small in SMALL.items()}.values())
]
"""Recipes that are the same in small are trained once: two of Qwen3-235B differ in what has no form on a CPU."""

WARMUP = 3
"""Steps at which nothing competes, and a run is the stock model's."""

COMPETING = {"compete_rate": 0.12, "compete_seed": 5, "compete_max_active_layers": 1}
"""In each recipe some layer competes at some of five steps, and at some none."""


def curves(small: Small, folder: Path, **more: object) -> dict[str, dict[int, float]]:
    """TensorBoard's scalars by name and iteration of one run."""
    run_ranks(small.world, train_on_rank, small.argv(tensorboard_dir=folder, **more), timeout=400)
    return read_scalars(folder)


def check_it_competes_and_learns(scalars: dict[str, dict[int, float]], steps: int, warmup: int) -> None:
    losses = scalars["lm loss"]
    assert len(losses) == steps and all(map(math.isfinite, losses.values()))
    assert losses[steps] < losses[1] - 0.2
    competed = [step for step, count in scalars["competition/active-layers"].items() if count]
    assert competed and min(competed) > warmup and len(competed) < steps - warmup
    agreement = {step: scalars["competition/agreement"].get(step) for step in competed}
    assert all(value is not None and 0 < value <= 1 for value in agreement.values())


@pytest.mark.parametrize("recipe", RECIPES)
def test_competes_by_response(recipe: Path, tmp_path: Path) -> None:
    steps = STEPS - WARMUP
    scalars = curves(SMALL[recipe], tmp_path, compete_kind="response", exit_interval=steps, **COMPETING)
    check_it_competes_and_learns(scalars, steps, warmup=0)


@pytest.mark.parametrize("recipe", RECIPES)
def test_competes_by_utility_and_is_the_stock_model_until_then(recipe: Path, tmp_path: Path) -> None:
    """Without the balance loss of normal steps, which a stock run does not have."""
    small = SMALL[recipe]
    stock = curves(small, tmp_path / "stock", router="topk", exit_interval=WARMUP, log_params_norm=True)
    competing = curves(
        small, tmp_path / "competing", compete_kind="utility", compete_router_balance_coeff=0.0, compete_warmup_steps=WARMUP,
        log_params_norm=True, **COMPETING,
    )  # fmt: skip
    check_it_competes_and_learns(competing, STEPS, WARMUP)
    for name in ("lm loss", "grad-norm", "params-norm"):
        assert stock[name] == {step: competing[name][step] for step in range(1, WARMUP + 1)}
