"""Normal steps with Megatron's other dispatchers, and shared experts beside the routed ones."""

import dataclasses
from typing import Any

import pytest

from tests.moe import layouts
from tests.moe.layouts import BATCH, EXPERTS, FFN, HIDDEN, SEQUENCE, SHARED_FFN, Layout
from tests.moe.reference import Weights
from tests.moe.steps import check, random_batch
from tests.moe.test_layouts import CASES, STRONG
from tests.ranks import run_rank

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


def flex_layer() -> str:
    from megatron_compete.moe.layer import CompeteMoELayer

    layouts.initialize(Layout())
    weights = Weights.random(EXPERTS, HIDDEN, FFN)
    layer: CompeteMoELayer = layouts.build_layer(Layout(dispatcher="flex"), weights, STRONG, lambda: 0)
    return type(layer._row_dispatcher).__name__


@pytest.mark.gpu
def test_flex_dispatcher() -> None:
    """DeepEP, HybridEP and NCCL-EP are CUDA libraries: Megatron cannot build its flex dispatcher on a CPU."""
    assert run_rank(flex_layer) == "MoEAlltoAllTokenDispatcher"
