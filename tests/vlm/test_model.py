"""The model in one process: its layers, text-only microbatches, evaluation, freezing, and steps without competition."""

from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_compete.config import CompeteConfig
from tests.ranks import run_rank
from tests.vlm import models
from tests.vlm.models import (
    ALL_COMPETE,
    CLIP,
    SIGLIP,
    Batch,
    competing_model,
    configuration,
    initialize,
    train_step,
)

EVERYWHERE = {"experts_in": ("vision", "projector", "language")}
MIXED = [[1], [2], [], [1, 3]]
"""Tiles of the images of four samples."""


def numbers_of(settings: Any) -> tuple[list[tuple[str, int, int]], Any, Any]:
    from megatron_compete.vlm.model import moe_layers

    initialize()
    model = competing_model(configuration(settings))
    layers = [(type(layer).__name__, layer.layer_number, layer.router.layer_number) for layer in moe_layers(model)]
    biases = [layer.router.bias for layer in moe_layers(model.vision_model)]
    assert biases == [None, None] and model.vision_projection.encoder.router.bias is None
    return layers, model.config.num_moe_experts, model.language_model.config.num_moe_experts


def test_layers_are_numbered_through_the_model() -> None:
    layers, of_model, of_language = run_rank(numbers_of, models.changed(SIGLIP, **EVERYWHERE))
    tower = [("CompeteMoELayer", number, number) for number in (1, 2)]
    decoder = [("CompeteMoELayer", number, number) for number in (4, 5)]
    assert sorted(layers, key=lambda layer: layer[1]) == [*tower, ("CompetingProjection", 3, 3), *decoder]
    assert (of_model, of_language) == (4, 4)


def test_the_schedule_finds_experts_beside_a_dense_language_model() -> None:
    layers, of_model, of_language = run_rank(numbers_of, CLIP)
    assert [number for _, number, _ in layers] == [1, 2, 3]
    assert (of_model, of_language) == (4, None)


def gradients(
    batches: list[Batch], compete: CompeteConfig, overrides: dict[str, Any]
) -> tuple[list[float], dict[str, Tensor]]:
    initialize()
    return train_step(competing_model(configuration(**overrides), compete), batches)


BALANCED = {
    "moe_router_load_balancing_type": "aux_loss", "moe_aux_loss_coeff": 0.1, "moe_z_loss_coeff": 0.1,
}  # fmt: skip
"""Megatron's own losses of routers."""


@pytest.mark.parametrize("kind", ["competes", "utility", "normal"])
def test_a_microbatch_of_text_leaves_tower_and_projector_alone(kind: str) -> None:
    compete = {
        "competes": ALL_COMPETE,
        "utility": CompeteConfig(rate=1.0, max_active_layers=5, kind="utility"),
        "normal": CompeteConfig(rate=1e-3, warmup_steps=1),
    }[kind]
    losses, grads = run_rank(gradients, [Batch.random([[], []])], compete, BALANCED)
    vision = {name: grad for name, grad in grads.items() if name.startswith("vision_")}
    assert len(vision) > 40 and all(torch.isfinite(grad).all() for grad in vision.values())
    assert [name for name, grad in vision.items() if grad.any()] == []
    assert losses[0] > 0 and grads["language_model.output_layer.weight"].any()
