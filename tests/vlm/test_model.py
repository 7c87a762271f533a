"""The model in one process: its layers, text-only microbatches, evaluation, freezing, and steps without competition."""

from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_compete.config import CompeteConfig
from tests.ranks import run_rank
from tests.vlm.models import (
    ALL_COMPETE,
    CLIP,
    SIGLIP,
    Batch,
    build,
    changed,
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
    layers, of_model, of_language = run_rank(numbers_of, changed(SIGLIP, **EVERYWHERE))
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


@pytest.mark.parametrize("kind", ["competes", "sampled", "vision half", "utility", "normal"])
def test_a_microbatch_of_text_leaves_tower_and_projector_alone(kind: str) -> None:
    compete = {
        "competes": ALL_COMPETE,
        "sampled": changed(ALL_COMPETE, token_fraction=0.5, response_centering="ema", response_gradients="all"),
        "vision half": changed(ALL_COMPETE, balance_loss="top1", layer_reduction="mean", router_z_loss_coeff=0.1),
        "utility": CompeteConfig(rate=1.0, max_active_layers=6, kind="utility"),
        "normal": CompeteConfig(rate=1e-3, warmup_steps=1),
    }[kind]
    losses, grads = run_rank(gradients, [Batch.random([[], []])], compete, BALANCED)
    vision = {name: grad for name, grad in grads.items() if name.startswith("vision_")}
    assert len(vision) > 40 and all(torch.isfinite(grad).all() for grad in vision.values())
    assert [name for name, grad in vision.items() if grad.any()] == []
    assert losses[0] > 0 and grads["language_model.output_layer.weight"].any()


def weights_of_losses(settings: Any, reduction: str) -> dict[int, float]:
    from megatron_compete.vlm.model import moe_layers

    initialize()
    model = competing_model(configuration(settings), changed(ALL_COMPETE, layer_reduction=reduction))
    return {layer.layer_number: layer.loss_weight for layer in moe_layers(model)}


def test_losses_are_means_over_the_layers_of_a_part() -> None:
    found = run_rank(weights_of_losses, changed(SIGLIP, num_layers=3, **EVERYWHERE), "mean")
    assert found == {1: 1 / 3, 2: 1 / 3, 3: 1 / 3, 4: 1.0, 5: 0.5, 6: 0.5}
    assert set(run_rank(weights_of_losses, CLIP, "sum").values()) == {1.0}


def steps_with_and_without(compete: CompeteConfig | None) -> tuple[Any, Any]:
    """Losses and gradients of a step, and losses in evaluation, with competing layers or Megatron's own."""
    from megatron_compete.vlm.exchange import stock_parts

    initialize()
    config = configuration(changed(SIGLIP, **EVERYWHERE), **BALANCED)
    model = build(config, stock_parts(config)) if compete is None else competing_model(config, compete)
    batches = [Batch.random(MIXED), Batch.random([[], []], seed=1)]
    step = train_step(model, batches)
    model.eval()
    with torch.no_grad():
        return step, [model(**batch.on_stage(first=True))[0] for batch in batches]


def test_rate_0_is_megatron_bit_for_bit() -> None:
    (losses, grads), evaluated = run_rank(steps_with_and_without, None)
    (losses_0, grads_0), evaluated_0 = run_rank(steps_with_and_without, CompeteConfig(rate=0.0))
    assert losses_0 == losses
    assert [name for name, grad in grads.items() if not torch.equal(grad, grads_0[name])] == []
    assert all(torch.equal(*pair) for pair in zip(evaluated_0, evaluated, strict=True))


def test_evaluation_never_competes() -> None:
    (losses, _), evaluated = run_rank(steps_with_and_without, ALL_COMPETE)
    (losses_0, _), evaluated_0 = run_rank(steps_with_and_without, None)
    assert losses[0] != losses_0[0]
    assert all(torch.equal(*pair) for pair in zip(evaluated, evaluated_0, strict=True))


def step_in_bf16() -> tuple[list[str], list[float], bool]:
    """Dtypes of tower and projector, losses, and whether all gradients are numbers and those of routers are there."""
    from megatron.core.transformer.module import Float16Module

    initialize()
    config = configuration(CLIP, bf16=True, params_dtype=torch.bfloat16, moe_router_dtype="fp32")
    wrapped = Float16Module(config.transformer, competing_model(config))
    losses = []
    for tiles in (MIXED, [[], []]):
        output, mask = wrapped(**Batch.random(tiles).on_stage(first=True))
        loss = (output * mask).sum() / mask.sum()
        loss.backward()
        losses.append(float(loss))
    grads = {name: p.grad for name, p in wrapped.module.named_parameters() if p.grad is not None}
    good = all(torch.isfinite(grad).all() for grad in grads.values())
    dtypes = {str(p.dtype) for name, p in wrapped.named_parameters() if "vision" in name}
    return sorted(dtypes), losses, good and sum(".router." in name for name in grads) == 3


def test_bf16() -> None:
    dtypes, losses, good = run_rank(step_in_bf16)
    assert dtypes == ["torch.bfloat16"] and good and all(2 < loss < 10 for loss in losses)


def trained_parts(settings: Any) -> tuple[set[str], set[str]]:
    """Parts whose parameters have gradients after a step with images and one of text, and those whose expert biases move."""
    from megatron_compete.vlm.exchange import stock_parts

    initialize()
    config = configuration(settings, moe_router_enable_expert_bias=True, moe_router_score_function="sigmoid")
    model = build(config, stock_parts(config))
    train_step(model, [Batch.random(MIXED), Batch.random([[]], seed=1)])
    learn = {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad and p.main_grad.any()}
    return learn, {name.partition(".")[0] for name, b in model.named_buffers() if "expert_bias" in name and b.any()}


@pytest.mark.parametrize("frozen", ["freeze_tower", "freeze_projector", "freeze_language"])
def test_frozen_parts_have_no_gradient(frozen: str) -> None:
    names = {
        "freeze_tower": "vision_model",
        "freeze_projector": "vision_projection",
        "freeze_language": "language_model",
    }
    learn, biased = run_rank(trained_parts, changed(SIGLIP, **EVERYWHERE, **{frozen: True}))
    assert learn == biased == set(names.values()) - {names[frozen]}
