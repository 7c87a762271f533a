"""Routers of every part by `--router`: competition, Megatron's top-K, baselines, and baselines that cannot."""

from typing import Any

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.moe.baselines.config import BaselineConfig
from tests.ranks import run_rank
from tests.vlm.models import SIGLIP, Batch, build, changed, configuration, initialize, train_step

EVERYWHERE = changed(SIGLIP, experts_in=("vision", "projector", "language"))


def trained_by(router: str, settings: Any) -> tuple[list[str], list[float], list[str]]:
    """Names of the routers' classes, losses, and routers' parameters without a gradient."""
    from megatron_compete.vlm.exchange import baseline_parts, stock_parts
    from megatron_compete.vlm.model import moe_layers

    initialize()
    config = configuration(settings)
    exchanges = stock_parts(config) if router == "topk" else baseline_parts(config, router, BaselineConfig())
    model = build(config, exchanges)
    losses, grads = train_step(model, [Batch.random([[1], []]), Batch.random([[], []], seed=1)])
    idle = [name for name, grad in grads.items() if ".router." in name and not grad.any()]
    return [type(layer.router).__name__ for layer in moe_layers(model)], losses, idle


ROUTERS = {"topk": "TopKRouter", "xmoe": "CosineRouter", "cosine": "PerturbedCosineRouter", "remoe": "ReMoERouter",
           "usmoe": "USMoERouter", "threshold": "ExpertThresholdRouter"}  # fmt: skip


@pytest.mark.parametrize("router", ROUTERS)
def test_every_part_routes_by_it(router: str) -> None:
    names, losses, idle = run_rank(trained_by, router, EVERYWHERE)
    assert names == [ROUTERS[router]] * 5
    assert all(loss > 0 for loss in losses) and idle == []


def test_default_vectors_where_widths_are_the_same() -> None:
    names, _, idle = run_rank(trained_by, "default-moe", changed(SIGLIP, experts_in=("vision", "language")))
    assert names == ["DefaultMoERouter"] * 4 and idle == []


def refused(router: str, settings: Any) -> str:
    from megatron_compete.vlm.exchange import baseline_parts

    with pytest.raises(CompeteError) as error:
        baseline_parts(configuration(settings), router, BaselineConfig())
    return str(error.value)


def test_a_router_that_cannot_says_so() -> None:
    assert "leave projector out of --experts-in" in refused("default-moe", SIGLIP)
    assert "0.25 in vision, 0.25 in projector, 0.5 in language" in refused("remoe", changed(EVERYWHERE, num_experts=8))


def test_frozen_experts_do_not_compete() -> None:
    from megatron_compete.config import CompeteConfig
    from megatron_compete.moe.competition import Competition
    from megatron_compete.vlm.exchange import competing_parts

    config = configuration(changed(SIGLIP, freeze_projector=True))
    with pytest.raises(CompeteError, match="--freeze-projector"):
        competing_parts(config, Competition.of_model(CompeteConfig(), config, lambda: 0))
