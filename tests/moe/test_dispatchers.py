"""Normal steps and inference with Megatron's other dispatchers, and shared experts beside the routed ones."""

import contextlib
import dataclasses
from typing import Any

import pytest
import torch

from megatron_compete.config import CompeteConfig
from tests.moe import layouts
from tests.moe.layouts import BATCH, EXPERTS, FFN, HIDDEN, SEQUENCE, SHARED_FFN, Layout, rest_is_slow
from tests.moe.reference import Weights
from tests.moe.steps import Batch, Case, Result, check, random_batch, train_step
from tests.moe.test_layouts import CASES
from tests.ranks import run_rank

DISPATCHED = [
    Layout(),
    Layout(world=2, ep=2),
    Layout(world=2, tp=2, etp=2),
    Layout(world=4, tp=2, ep=4),
    Layout(world=4, tp=2, ep=2, etp=2),
    Layout(world=4, cp=2, ep=4),
]


COVERING = [DISPATCHED[1], DISPATCHED[4], DISPATCHED[5]]
"""In `make test`: each of DP, TP, CP, EP and ETP above 1."""


@pytest.mark.parametrize("layout", rest_is_slow(DISPATCHED, COVERING), ids=str)
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
@pytest.mark.parametrize(
    "layout", rest_is_slow([DISPATCHED[1], DISPATCHED[3], DISPATCHED[4]], [DISPATCHED[4]]), ids=str
)
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


class Dispatched(Exception):
    """Ends a forward pass where its tokens would be sent."""


def dispatchers_in_turn() -> list[str]:
    """Who sends the tokens: in training, in inference as Megatron's engines mark it, and in training again."""
    from megatron.core.inference.utils import InferenceMode
    from megatron.core.transformer.moe.moe_utils import get_default_pg_collection

    layouts.initialize(Layout())
    config = CompeteConfig(rate=1.0, max_active_layers=1)
    layer = layouts.build_layer(
        Layout(), Weights.random(EXPERTS, HIDDEN, FFN), config, inference_moe_token_dispatcher_type="nccl"
    )
    layer._setup_inference_mode(get_default_pg_collection())  # as for --transformer-impl inference_optimized
    assert layer._inference_token_dispatcher is not layer._training_token_dispatcher

    def preprocess(*_: object) -> None:
        raise Dispatched

    names = {
        id(layer._training_token_dispatcher): "training",
        id(layer._inference_token_dispatcher): "inference",
        id(layer._row_dispatcher): "rows",
    }
    layer.preprocess, seen = preprocess, []
    for in_inference, in_training in ((False, True), (True, True), (True, False), (False, False), (False, True)):
        layer.train(in_training)
        with InferenceMode.active() if in_inference else contextlib.nullcontext(), pytest.raises(Dispatched):
            layer(torch.randn(4, 1, HIDDEN))
        seen.append(names[id(layer.token_dispatcher)])
    return seen


def test_inference_keeps_its_own_dispatcher() -> None:
    """A model in training mode may be in inference as well: an engine that samples between steps."""
    assert run_rank(dispatchers_in_turn) == ["rows", "inference", "inference", "training", "rows"]


def after_a_step() -> None:
    layouts.initialize(Layout())
    layer = layouts.build_layer(
        Layout(), Weights.random(EXPERTS, HIDDEN, FFN), CompeteConfig(rate=1.0, max_active_layers=1)
    )
    own = layer.token_dispatcher
    layer(torch.randn(4, 1, HIDDEN))
    assert layer.token_dispatcher is own and own is not layer._row_dispatcher


def test_a_competing_step_puts_the_dispatcher_back() -> None:
    run_rank(after_a_step)


class Delayed(torch.autograd.Function):
    """A linear layer that leaves its weight's gradient for later, as Transformer Engine's do when asked to."""

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, weight: torch.Tensor, left: list[Any]) -> torch.Tensor:
        ctx.save_for_backward(tokens, weight)
        ctx.left = left
        return tokens @ weight.T

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[Any, ...]:
        tokens, weight = ctx.saved_tensors
        ctx.left.append((weight, grad_outputs[0].T @ tokens))
        return grad_outputs[0] @ weight, None, None


def train_delayed(
    layout: Layout, batch: Batch, cases: dict[str, Case], weights: Weights, overrides: dict[str, Any]
) -> dict[str, Result]:
    """The steps with the experts' weight gradients computed beside the dispatcher's backward pass."""
    plain = layouts.transformer_config

    def delaying(*args: Any, **kwargs: Any) -> Any:
        config = plain(*args, **kwargs)
        config.overlap_dispatch_backward_with_experts_wgrad = True  # Megatron wants Transformer Engine for it
        return config

    layouts.transformer_config = delaying
    layouts.initialize(layout)
    results = {}
    for name, case in cases.items():
        layer = layouts.build_layer(layout, weights, case.config, case.current_step, **overrides)
        left: list[Any] = []
        caught_up = []
        for expert in layer.experts.local_experts:
            for linear in (expert.linear_fc1, expert.linear_fc2):
                linear.forward = lambda tokens, weight=linear.weight: (Delayed.apply(tokens, weight, left), None)  # noqa: B023

        def backward_dw() -> None:
            caught_up.append(len(left))  # noqa: B023
            while left:  # noqa: B023
                weight, grad = left.pop()  # noqa: B023
                weight.main_grad.add_(grad)

        layer.experts.backward_dw = backward_dw
        results[name] = train_step(layer, layout, batch)
        # the fc1 and fc2 of each local expert, once a microbatch: nothing of the scoring pass is among them
        assert not left and caught_up == [2 * layer.num_local_experts] * len(batch[0]), name
    return results


@pytest.mark.parametrize("layout", DISPATCHED[:2], ids=str)
def test_weight_gradients_beside_the_dispatchers_backward_pass(layout: Layout) -> None:
    cases = {name: case for name, case in CASES.items() if case.config.response_gradients == "winners"}
    assert {case.config.kind for case in cases.values() if case.competes} == {"response", "utility"}
    check(layout, random_batch(layout, SEQUENCE, BATCH), cases, on_rank=train_delayed)
