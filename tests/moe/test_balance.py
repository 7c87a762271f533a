"""The losses of `--compete-preset paper-vlm` in a layer, by their gradients, against the formulas in fp64."""

import argparse
import dataclasses

import pytest
import torch

from megatron_compete.config import PREFIX, CompeteConfig
from megatron_compete.moe.competition import Competition
from megatron_compete.training.presets import PRESETS
from tests.moe import layouts
from tests.moe.layouts import BATCH, EXPERTS, FFN, HIDDEN, SEQUENCE, Layout
from tests.moe.reference import Weights
from tests.moe.steps import (
    Case,
    Microbatch,
    assert_equal_to_reference,
    random_batch,
    reference_step,
    train_on_rank,
    train_step,
)
from tests.moe.test_uneven import padded
from tests.ranks import run_rank, run_ranks

PAPER = CompeteConfig.from_arguments(argparse.Namespace(train_iters=1, compete_rate=0.5, **{
    name: value for name, value in PRESETS["paper-vlm"].items() if name.startswith(PREFIX) and name not in ("compete_rate", "compete_warmup_fraction")
}))  # fmt: skip
"""With more competing steps, and no warm-up before them."""
TOP_K = 2
CASES = {"competing": Case(PAPER), "normal": Case(PAPER, competes=False)}


def without_a_task(microbatch: Microbatch) -> Microbatch:
    """Only the layer's own losses have gradients."""
    return dataclasses.replace(microbatch, cotangents=torch.zeros_like(microbatch.cotangents))


@pytest.mark.parametrize(
    "layout",
    [Layout(), Layout(world=2, tp=2, ep=2), Layout(world=2, cp=2, per_token=True), Layout(world=2, ep=2)],
    ids=str,
)
def test_a_step_of_the_preset_is_the_authors_formulas(layout: Layout) -> None:
    """One microbatch of whole images, and one with padding, of which an image has more than half."""
    weights = Weights.random(EXPERTS, HIDDEN, FFN)
    weights = dataclasses.replace(weights, router=weights.router / 4)  # small logits: tokens' gradients hardly cancel
    whole = random_batch(layout, SEQUENCE, BATCH, microbatches=1)
    batch = [[*map(without_a_task, [one, padded(SEQUENCE, 9 + rank, [8, 3])])] for rank, (one,) in enumerate(whole)]
    overrides = {"moe_router_topk": TOP_K}
    per_rank = run_ranks(layout.world, train_on_rank, layout, batch, CASES, weights, overrides)
    for name, case in CASES.items():
        expected = reference_step(batch, weights, layout, case.config, case.reference, TOP_K)
        assert expected[0].weight_grads.router.abs().max() > 1e-6
        assert_equal_to_reference([results[name] for results in per_rank], expected, layout, tolerance=1e-6)


def gradients_by_reduction() -> list[list[torch.Tensor]]:
    """Of the losses of one layer of four that can compete: added up, a mean, and with a weight that a model has given."""
    layouts.initialize(Layout())
    found = []
    for reduction, weight in (("sum", None), ("mean", None), ("mean", 0.5)):
        config = dataclasses.replace(PAPER, layer_reduction=reduction)  # type: ignore[arg-type]
        layer = layouts.build_layer(
            Layout(), Weights.random(EXPERTS, HIDDEN, FFN), config, Case(PAPER).current_step, moe_router_topk=TOP_K
        )
        competition = Competition(config, (1, 2, 3, 4), lambda: 0)
        layer.loss_weight = competition.loss_weight(4) if weight is None else weight
        batch = [[without_a_task(one) for one in random_batch(Layout(), SEQUENCE, BATCH)[0]]]
        result = train_step(layer, Layout(), batch)
        found.append([*result.token_grads, result.weight_grads["router"]])
    return found


def test_a_mean_over_layers_is_a_sum_with_weights() -> None:
    added, mean, given = run_rank(gradients_by_reduction)
    for one, quarter, half in zip(added, mean, given, strict=True):
        assert one.abs().max() > 0 and torch.equal(one / 4, quarter) and torch.equal(one / 2, half)


def weights_of_layers() -> list[float]:
    from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
    from megatron.core.transformer.moe.moe_utils import get_default_pg_collection

    from megatron_compete.moe.layer import CompeteMoELayer

    layouts.initialize(Layout())
    found = []
    for reduction in ("sum", "mean"):
        config = dataclasses.replace(PAPER, rate=0.1, layer_reduction=reduction)  # type: ignore[arg-type]
        spec = get_moe_module_spec(use_te=False, num_experts=EXPERTS, moe_grouped_gemm=False)
        layer = CompeteMoELayer(
            layouts.transformer_config(Layout()), spec.keywords["submodules"],
            pg_collection=get_default_pg_collection(), competition=Competition(config, (1, 2, 3, 4), lambda: 0),
        )  # fmt: skip
        found.append(layer.loss_weight)
    return found


def test_a_language_models_layers_have_the_weight_that_the_settings_say() -> None:
    assert run_rank(weights_of_layers) == [1.0, 0.25]
