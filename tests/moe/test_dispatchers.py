"""Normal steps with Megatron's other dispatchers, and shared experts beside the routed ones."""

import dataclasses
from typing import Any

import pytest

from tests.moe import layouts
from tests.moe.layouts import BATCH, EXPERTS, FFN, HIDDEN, SEQUENCE, SHARED_FFN, Layout
from tests.moe.reference import Weights
from tests.moe.steps import Batch, Case, Result, check, random_batch, train_step
from tests.moe.test_layouts import CASES

DISPATCHED = [
    Layout(),
    Layout(world=2, ep=2),
    Layout(world=2, tp=2, etp=2),
    Layout(world=4, tp=2, ep=4),
    Layout(world=4, tp=2, ep=2, etp=2),
    Layout(world=4, cp=2, ep=4),
]


@pytest.mark.parametrize("layout", DISPATCHED, ids=str)
def test_allgather_dispatcher(layout: Layout) -> None:
    layout = dataclasses.replace(layout, dispatcher="allgather")
    check(layout, random_batch(layout, SEQUENCE, BATCH), CASES)


SHARED: dict[str, dict[str, Any]] = {
    "plain": dict(moe_shared_expert_intermediate_size=SHARED_FFN),
    "overlapped": dict(moe_shared_expert_intermediate_size=SHARED_FFN, moe_shared_expert_overlap=True),
    "recomputed": dict(
        moe_shared_expert_intermediate_size=SHARED_FFN,
        recompute_granularity="selective",
        recompute_modules=["shared_experts"],
    ),
}


@pytest.mark.parametrize("kind", SHARED)
@pytest.mark.parametrize("layout", [DISPATCHED[1], DISPATCHED[3], DISPATCHED[4]], ids=str)
def test_shared_experts(layout: Layout, kind: str) -> None:
    weights = Weights.random(EXPERTS, HIDDEN, FFN, shared_ffn=SHARED_FFN)
    check(layout, random_batch(layout, SEQUENCE, BATCH), CASES, weights, **SHARED[kind])


def train_with_flex(
    layout: Layout, batch: Batch, cases: dict[str, Case], weights: Weights, overrides: dict[str, Any]
) -> dict[str, Result]:
    """The steps with Megatron's flex dispatcher replaced by one that can run on a CPU and counts what it combines.

    DeepEP, HybridEP and NCCL-EP are CUDA libraries for several ranks: their dispatcher cannot be built here.
    """
    from megatron.core.transformer.moe import moe_layer
    from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher

    combined = []

    class FlexOnCpu(MoEAlltoAllTokenDispatcher):
        def combine_postprocess(self, rows: Any) -> Any:
            combined.append(len(rows))
            return super().combine_postprocess(rows)

    moe_layer.MoEFlexTokenDispatcher = FlexOnCpu
    layouts.initialize(layout)
    results = {}
    for name, case in cases.items():
        combined.clear()
        layer = layouts.build_layer(layout, weights, case.config, case.current_step, **overrides)
        assert type(layer.token_dispatcher) is FlexOnCpu
        results[name] = train_step(layer, layout, batch)
        assert bool(combined) == (not case.competes or case.config.kind == "utility"), name
    return results


@pytest.mark.parametrize("layout", DISPATCHED[:2], ids=str)
def test_flex_dispatcher_serves_normal_steps_alone(layout: Layout) -> None:
    """It sums a token's rows inside its kernel; competition by response needs them apart and uses all-to-all."""
    layout = dataclasses.replace(layout, dispatcher="flex")
    check(layout, random_batch(layout, SEQUENCE, BATCH), CASES, on_rank=train_with_flex)
