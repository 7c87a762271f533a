"""Routers with any number of experts per token, in Megatron's layer, over two steps: against dense references in fp64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.moe import layouts
from tests.moe.baselines.layers import build_baseline
from tests.moe.baselines.variable_reference import ROUTERS, Variable
from tests.moe.layouts import BATCH, EXPERTS, FFN, HIDDEN, SEQUENCE, SHARED_FFN, Layout
from tests.moe.reference import Weights
from tests.moe.steps import Batch, Microbatch, Result, assert_equal_to_reference, reference_step
from tests.moe.steps import train_step as train_layer
from tests.moe.test_uneven import padded
from tests.ranks import run_ranks

LAYOUTS = [Layout(), Layout(world=2, ep=2), Layout(world=4, tp=2, ep=2, etp=2)]
MORE_LAYOUTS = [
    Layout(world=2),
    Layout(world=2, cp=2),
    Layout(world=4, tp=2, ep=4),
    Layout(world=2, ep=2, per_token=True),
    Layout(world=2, tp=2, per_token=True),
    Layout(world=2, ep=2, dispatcher="allgather"),
]
STATE = {"remoe": "l1_coefficient", "usmoe": "threshold", "threshold": "threshold", "default-moe": "default_outputs"}


def routers(layout: Layout) -> dict[str, Variable]:
    """Those that work with the layout's dispatcher."""
    return {
        name: router for name, router in ROUTERS.items() if layout.dispatcher == "alltoall" or name != "default-moe"
    }


def end_step(layer: Any, pipeline: Any = None) -> None:
    from megatron.core import parallel_state

    from megatron_compete.moe.baselines import step

    pipeline = pipeline or parallel_state.get_pipeline_model_parallel_group()
    step.end_step([layer], layer.router.num_of_model, pipeline)


def two_steps(
    layout: Layout, batches: list[Batch], weights: Weights, overrides: dict[str, Any]
) -> dict[str, list[tuple[Result, Tensor]]]:
    """Each with a layer of its own: the second's state comes from the first's state dict."""
    layouts.initialize(layout)
    results: dict[str, list[tuple[Result, Tensor]]] = {name: [] for name in routers(layout)}
    for name, router in routers(layout).items():
        state: dict[str, Any] = {}
        for batch in batches:
            layer = build_baseline(layout, name, router.settings, weights, **(router.overrides | overrides))
            layer.load_state_dict(state, strict=False)
            result = train_layer(layer, layout, batch)
            end_step(layer)
            state = {key: value for key, value in layer.state_dict().items() if "router." in key}
            results[name].append((result, state[f"router.{STATE[name]}"].clone()))
    return results


def check(layout: Layout, batches: list[Batch], weights: Weights, **overrides: Any) -> None:
    """Outputs, gradients and state of two steps, on every rank."""
    per_rank = run_ranks(layout.world, two_steps, layout, batches, weights, overrides)
    for name, router in routers(layout).items():
        state: Tensor | None = None
        for index, batch in enumerate(batches):
            expected = reference_step(batch, weights, layout, None, router.step(state))  # type: ignore[arg-type]
            results = [result[name][index] for result in per_rank]
            try:
                assert_equal_to_reference([result for result, _ in results], expected, layout)
            except AssertionError as error:
                raise AssertionError(f"{name}, step {index + 1}: {error}") from None
            state = router.after(state, batch, weights, index + 1)
            for _, found in results:
                torch.testing.assert_close(found.double(), state.double().reshape(found.shape), rtol=1e-5, atol=1e-6)
                assert torch.equal(found, results[0][1])


def some_batches(layout: Layout) -> list[Batch]:
    """For two steps of two microbatches, one with padding that is uneven over the ranks that share it.

    All different: at the second step, thresholds made of the same scores would lie on a score, where rounding decides.
    """
    seeds = [[[40 * step + 2 * rank + index for index in range(2)] for rank in range(layout.dp)] for step in range(2)]
    return [
        [
            [
                padded(SEQUENCE, first, [4, 2]),
                Microbatch.random(SEQUENCE, BATCH, second),
            ]
            for first, second in of_ranks
        ]
        for of_ranks in seeds
    ]


@pytest.mark.parametrize(
    "layout", [*LAYOUTS, *(pytest.param(layout, marks=pytest.mark.slow) for layout in MORE_LAYOUTS)], ids=str
)
def test_layer_equals_dense_reference(layout: Layout) -> None:
    check(layout, some_batches(layout), Weights.random(EXPERTS, HIDDEN, FFN))


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [False, True])
def test_shared_experts(overlap: bool) -> None:
    layout = Layout(world=2, ep=2)
    weights = Weights.random(EXPERTS, HIDDEN, FFN, shared_ffn=SHARED_FFN)
    shared = dict(moe_shared_expert_intermediate_size=SHARED_FFN, moe_shared_expert_overlap=overlap)
    check(layout, some_batches(layout), weights, **shared)


def test_a_rank_without_tokens() -> None:
    layout = Layout(world=2, ep=2)
    batches = [[[Microbatch.random(sequence, BATCH, seed)] for sequence in (SEQUENCE, 0)] for seed in (70, 71)]
    check(layout, batches, Weights.random(EXPERTS, HIDDEN, FFN))
