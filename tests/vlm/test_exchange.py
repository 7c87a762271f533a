"""Routers of every part by `--router`: competition, Megatron's top-K, baselines, and baselines that cannot."""

from types import SimpleNamespace
from typing import Any

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.moe.baselines.config import BaselineConfig
from tests.ranks import run_rank, run_ranks
from tests.vlm.models import LAYERS, SIGLIP, Batch, build, changed, configuration, initialize, train_step

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
           "usmoe": "USMoERouter", "threshold": "ExpertThresholdRouter", "frozen": "FrozenRouter"}  # fmt: skip


@pytest.mark.parametrize("router", ROUTERS)
def test_every_part_routes_by_it(router: str) -> None:
    names, losses, idle = run_rank(trained_by, router, EVERYWHERE)
    assert names == [ROUTERS[router]] * 5
    assert all(loss > 0 for loss in losses) and idle == []


def logged_experts(of_ranks: list[list[Batch]], settings: Any) -> dict[str, float]:
    """Experts per token, of the model and by layer, as a trainer logs them of a step by ReMoE."""
    import torch
    from megatron.core.transformer.moe.moe_logging import get_moe_metrics_tracker

    from megatron_compete.moe.metrics import install_counts
    from megatron_compete.vlm.exchange import baseline_parts

    initialize()
    config = configuration(settings)
    install_counts(config)
    model = build(config, baseline_parts(config, "remoe", BaselineConfig()), counted=False)
    batches = of_ranks[torch.distributed.get_rank()]
    train_step(model, batches)
    scalars: dict[str, float] = {}
    writer = SimpleNamespace(add_scalar=lambda name, value, step: scalars.update({name: float(value)}))
    get_moe_metrics_tracker().report(
        1 / len(batches), 1, writer, per_layer_logging=True, force_initialize=True, num_layers=LAYERS, moe_layer_freq=1
    )
    return scalars


def test_experts_per_token_are_logged_of_every_part() -> None:
    """The trainer names the language model's two layers; a part's mean is over microbatches that it saw tokens in."""
    pictures, text = Batch.random([[1], [2]]), Batch.random([[], []], seed=1)
    found = run_rank(logged_experts, [[pictures]], EVERYWHERE)
    layers = [found[f"moe/experts_per_token_layer_{layer}"] for layer in range(5)]
    assert min(layers) > 0 and found == {"experts_per_token": pytest.approx(sum(layers) / 5)} | {
        f"moe/experts_per_token_layer_{layer}": value for layer, value in enumerate(layers)
    }
    with_text = [run_rank(logged_experts, [[pictures, text]], SIGLIP)]
    with_text += run_ranks(2, logged_experts, [[pictures], [text]], SIGLIP, timeout=60)
    of_pictures = run_rank(logged_experts, [[pictures]], SIGLIP)
    assert with_text == [pytest.approx(of_pictures)] * 3


def test_default_vectors_where_widths_are_the_same() -> None:
    names, _, idle = run_rank(trained_by, "default-moe", changed(SIGLIP, experts_in=("vision", "language")))
    assert names == ["DefaultMoERouter"] * 4 and idle == []


def refused(router: str, settings: Any) -> str:
    from megatron_compete.vlm.exchange import baseline_parts

    with pytest.raises(CompeteError) as error:
        baseline_parts(configuration(settings), router, BaselineConfig())
    return str(error.value)


def test_a_router_that_cannot_says_so() -> None:
    assert "pictures have none" in refused("hash", SIGLIP)
    assert "leave projector out of --experts-in" in refused("default-moe", SIGLIP)
    assert "0.25 in vision, 0.25 in projector, 0.5 in language" in refused("remoe", changed(EVERYWHERE, num_experts=8))


def test_frozen_experts_do_not_compete() -> None:
    from megatron_compete.config import CompeteConfig
    from megatron_compete.moe.competition import Competition
    from megatron_compete.vlm.exchange import competing_parts

    config = configuration(changed(SIGLIP, freeze_projector=True))
    with pytest.raises(CompeteError, match="--freeze-projector"):
        competing_parts(config, Competition.of_model(CompeteConfig(), config, lambda: 0))
