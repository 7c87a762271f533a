"""Example recipes of kinds of models: jobs that Megatron accepts on their cluster, and that train here in small."""

from pathlib import Path
from typing import Any

import pytest

from megatron_compete.launch.recipe import read_recipe
from megatron_compete.moe.competition import moe_layer_numbers
from megatron_compete.plan import job as planner
from megatron_compete.report.scalars import read_scalars
from tests.ranks import run_ranks
from tests.recipes.shrink import shrink
from tests.training.runs import train_on_rank

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MODELS = {"moe_671b_a37b": 58, "moe_80b_a3b": 48, "hybrid_30b_a3b": 23}
"""Recipe and layers that can compete."""


@pytest.mark.parametrize("name", MODELS)
def test_a_recipe_is_a_job_whose_experts_compete(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments as they are, on the GPUs that they are for; what the planner cannot count yet is another matter."""
    monkeypatch.setattr(planner, "check_scope", lambda args: None)
    recipe = read_recipe(EXAMPLES / f"{name}.yaml")
    job = planner.read_job(recipe)
    layers = moe_layer_numbers(job.transformer, job.args.hybrid_layer_pattern)
    assert len(layers) == MODELS[name] and job.compete is not None
    assert job.args.compete_preset == "recommended" and job.compete.rate == 1.0


def trained(argv: list[str], world: int, folder: Path) -> dict[str, dict[int, float]]:
    run_ranks(world, train_on_rank, [*argv, "--tensorboard-dir", str(folder)])
    return read_scalars(folder)


@pytest.mark.parametrize("name", MODELS)
def test_in_small_it_trains_on_a_cpu(name: str, tmp_path: Path) -> None:
    small = shrink(EXAMPLES / f"{name}.yaml")
    more: dict[str, Any] = dict(train_iters=6, compete_rate=0.25, compete_max_active_layers=1, lr_warmup_iters=None)
    if name == "hybrid_30b_a3b":
        more |= dict(lr_decay_style="cosine", lr_wsd_decay_style=None, lr_wsd_decay_iters=None)
    scalars = trained(small.argv(**more, log_interval=1), small.world, tmp_path)
    losses = scalars["lm loss"]
    assert len(losses) == 6 and losses[6] < losses[1]
    assert max(scalars["competition/active-layers"].values()) > 0


def test_the_small_hybrid_model_trains_as_it_is(tmp_path: Path) -> None:
    arguments = read_recipe(EXAMPLES / "hybrid_byte_level.yaml").arguments
    given = arguments | {
        "mock-data": True, "tokenizer-type": "NullTokenizer", "vocab-size": 256, "train-iters": 4, "log-interval": 1,
        "tensorboard-log-interval": 1, "lr-warmup-iters": 1, "compete-cap-rate": True, "compete-rate": 0.3,
    }  # fmt: skip
    argv = [
        word
        for name, value in given.items()
        for word in ([f"--{name}"] if value is True else [f"--{name}", str(value)])
    ]
    scalars = trained(argv, 1, tmp_path)
    assert scalars["lm loss"][4] < scalars["lm loss"][1]
    assert max(scalars["competition/active-layers"].values()) == 1
