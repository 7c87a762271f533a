"""Competition by utility in a layer, beside the layouts, dispatchers, paddings, router settings and recomputation of the
other tests: what a competing step has in common with a normal one."""

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_compete.common.comparison import largest_difference
from megatron_compete.config import CompeteConfig
from tests.moe import layouts, reference
from tests.moe.layouts import BATCH, EXPERTS, FFN, HIDDEN, SEQUENCE, WINNERS, Layout
from tests.moe.reference import Weights
from tests.moe.steps import Case, Result, assert_equal_to_reference, random_batch, reference_step, train_step
from tests.moe.test_layouts import UTILITY
from tests.ranks import run_rank, run_ranks

ONE_RANK = Layout()
TASK_ALONE = dataclasses.replace(UTILITY, rate=1.0, router_balance_coeff=0.0)
MISSING = dataclasses.replace(TASK_ALONE, utility_gradient="missing")
NEVER = dataclasses.replace(UTILITY, rate=1e-9)


def build(config: CompeteConfig, layout: Layout = ONE_RANK, **overrides: Any) -> Any:
    return layouts.build_layer(layout, Weights.random(EXPERTS, HIDDEN, FFN), config, **overrides)


def trained(config: CompeteConfig, layout: Layout = ONE_RANK, **overrides: Any) -> Result:
    """A step of a fresh layer, at step 0."""
    return train_step(build(config, layout, **overrides), layout, random_batch(layout, SEQUENCE, BATCH))


def only_the_router_differs(layout: Layout) -> None:
    layouts.initialize(layout)
    normal = trained(NEVER, layout)
    for config in (dataclasses.replace(UTILITY, rate=1.0), dataclasses.replace(MISSING, router_balance_coeff=0.3)):
        competing = trained(config, layout)
        assert all(torch.equal(*pair) for pair in zip(normal.outputs, competing.outputs, strict=True))
        for name, grad in normal.weight_grads.items():
            assert torch.equal(grad, competing.weight_grads[name]) == (name != "router"), name


@pytest.mark.parametrize(
    "layout",
    [Layout(), Layout(dispatcher="allgather"), Layout(world=2, ep=2), Layout(world=4, tp=2, ep=2, etp=2)],
    ids=str,
)
def test_a_competing_step_is_a_normal_one_but_for_the_routers_gradient(layout: Layout) -> None:
    """Outputs and expert gradients to the bit."""
    run_ranks(layout.world, only_the_router_differs, layout)


def losses_of_the_router() -> None:
    """What z-loss and load balance add to a gradient, at a normal step and at a competing one."""
    layouts.initialize(Layout())
    losses = dict(moe_aux_loss_coeff=0.1, moe_z_loss_coeff=0.1, moe_router_load_balancing_type="aux_loss")
    added = []
    for config in (dataclasses.replace(NEVER, router_balance_coeff=0.0), TASK_ALONE, MISSING):
        without, with_losses = trained(config), trained(config, **losses)
        added.append(with_losses.weight_grads["router"] - without.weight_grads["router"])
    for other in added[1:]:
        torch.testing.assert_close(added[0], other, rtol=1e-4, atol=1e-5 * float(added[0].abs().max()))
    assert added[0].abs().max() > 1e-3


def test_losses_of_the_router_are_those_of_a_normal_step() -> None:
    run_rank(losses_of_the_router)


def scaled_losses() -> None:
    layouts.initialize(Layout())
    for config in (TASK_ALONE, MISSING):
        grads = []
        for factor in (1.0, 2.0**12):
            batch = random_batch(Layout(), SEQUENCE, BATCH)
            scaled = [[dataclasses.replace(one, cotangents=one.cotangents * factor) for one in mine] for mine in batch]
            grads.append(train_step(build(config), Layout(), scaled).weight_grads["router"])
        assert torch.equal(grads[0] * factor, grads[1])


def test_the_gradient_is_linear_in_the_loss() -> None:
    """To the bit for a power of two: scaling for fp16, by microbatches or by tokens needs nothing of its own."""
    run_rank(scaled_losses)


def routed_by_jittered_inputs() -> None:
    layouts.initialize(Layout())
    layer = build(TASK_ALONE, moe_input_jitter_eps=0.3)
    hidden_states = torch.randn(SEQUENCE, BATCH, HIDDEN)
    probs_TE, routing_map_TE = layer.route(hidden_states)
    _, logits, *_ = probs_TE.grad_fn.saved_tensors  # what the backward pass will take the gradient at
    logits = logits.reshape(-1, EXPERTS)
    without_jitter = layer.router.gating(hidden_states).reshape(-1, EXPERTS)
    assert largest_difference(logits, without_jitter, "logits") > 1e-3
    expected = logits.masked_fill(~routing_map_TE, -torch.inf).softmax(-1)
    torch.testing.assert_close(probs_TE, expected)
    assert torch.equal(logits.topk(WINNERS).indices.sort().values,
                       routing_map_TE.nonzero()[:, 1].view(-1, WINNERS))  # fmt: skip


def test_input_jitter_is_in_the_probabilities() -> None:
    run_rank(routed_by_jittered_inputs)


def in_chunks() -> None:
    layouts.initialize(Layout())
    whole = trained(TASK_ALONE).weight_grads["router"]
    for chunk in (1, 5, 4096):
        other = trained(dataclasses.replace(TASK_ALONE, score_chunk_tokens=chunk)).weight_grads["router"]
        assert (whole - other).abs().max() <= 1e-6 * whole.abs().max()


def test_chunks_of_any_size_give_the_same_gradient() -> None:
    run_rank(in_chunks)


STEPS = 6


def steps_of_one_layer(layout: Layout) -> list[Result]:
    """The same layer at one step after another; it competes at half of them."""
    layouts.initialize(layout)
    results: list[Result] = []
    layer = build(UTILITY, layout, current_step=lambda: len(results))
    for _ in range(STEPS):
        results.append(train_step(layer, layout, random_batch(layout, SEQUENCE, BATCH)))
        assert layer._crossing is None and layer.router._kept_logits is None
        layer.zero_grad(set_to_none=True)
    return results


@pytest.mark.parametrize("layout", [Layout(), Layout(world=2, ep=2)], ids=str)
def test_normal_and_competing_steps_in_turn(layout: Layout) -> None:
    from megatron_compete.schedule import CompetitionSchedule

    per_rank = run_ranks(layout.world, steps_of_one_layer, layout)
    schedule = CompetitionSchedule(1, UTILITY.rate, max_active=1, seed=UTILITY.seed)
    batch, weights = random_batch(layout, SEQUENCE, BATCH), Weights.random(EXPERTS, HIDDEN, FFN)
    active = [schedule.is_active(step, 1) for step in range(STEPS)]
    assert {True, False} == set(active)
    for step, competes in enumerate(active):
        expected = reference_step(batch, weights, layout, UTILITY, Case(UTILITY, competes).reference)
        assert_equal_to_reference([results[step] for results in per_rank], expected, layout)


def agreement_on_rank(layout: Layout, overrides: dict[str, Any]) -> dict[str, float]:
    from megatron.core.transformer.moe.moe_logging import get_moe_metrics_tracker

    from megatron_compete.moe.metrics import CompetitionMetrics, LogIntervals, install_metrics

    layouts.initialize(layout)
    layer = build(UTILITY, layout, current_step=Case(UTILITY).current_step, **overrides)
    install_metrics(layer.competition, EXPERTS, LogIntervals())
    train_step(layer, layout, random_batch(layout, SEQUENCE, BATCH))
    tracker = get_moe_metrics_tracker()
    assert isinstance(tracker, CompetitionMetrics)
    counted = float(tracker.sums._cell(1, "agreement")[1])
    assert counted == 2 * SEQUENCE * BATCH // layout.tp, counted  # microbatches
    return tracker._reduced(per_layer=False)


@pytest.mark.parametrize("overrides", [{}, dict(recompute_granularity="selective", recompute_modules=["moe"])])
def test_agreement_is_with_the_experts_that_lower_the_loss_most(overrides: dict[str, Any]) -> None:
    layout, weights = Layout(world=2, ep=2), Weights.random(EXPERTS, HIDDEN, FFN).double()
    agreement, top1, count = 0.0, 0.0, 0
    for microbatch in itertools.chain(*random_batch(layout, SEQUENCE, BATCH)):
        tokens, cotangents = (microbatch.flat(whole).double() for whole in (microbatch.tokens, microbatch.cotangents))
        u = torch.einsum("teh,th->te", reference.expert_outputs(tokens, weights), cotangents)
        logits = tokens @ weights.router.T
        chosen, best = (one.topk(WINNERS).indices for one in (logits, -u))
        agreement += float((chosen.unsqueeze(1) == best.unsqueeze(2)).any(2).double().mean(1).sum())
        top1 += float((chosen[:, 0] == best[:, 0]).sum())
        count += len(tokens)
    for found in run_ranks(layout.world, agreement_on_rank, layout, overrides):
        assert found["competition/active-layers"] == 1
        assert found["competition/agreement"] == pytest.approx(agreement / count)
        assert found["competition/agreement-top1"] == pytest.approx(top1 / count)
        assert "competition/distillation-loss" not in found and found["moe/load-max"] > 0


def gradients_of(layer: Any, tokens: list[Tensor]) -> list[Tensor]:
    """Of several microbatches in flight at once, backward in the order they went."""
    outputs = [layer(microbatch.requires_grad_())[0] for microbatch in tokens]
    for output in outputs:
        output.square().sum().backward()
    return [*(t.grad for t in tokens), *(p.grad for p in layouts.parameters(layer).values())]


def recomputed_bits() -> None:
    layouts.initialize(Layout())
    for config in (dataclasses.replace(UTILITY, rate=1.0), MISSING):
        grads = []
        for overrides in ({}, dict(recompute_granularity="selective", recompute_modules=["moe"])):
            tokens = [
                torch.randn(SEQUENCE, BATCH, HIDDEN, generator=torch.Generator().manual_seed(s)) for s in range(4)
            ]
            grads.append(gradients_of(build(config, **overrides), tokens))
        assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))


def test_recomputation_with_microbatches_in_flight_changes_no_bit() -> None:
    run_rank(recomputed_bits)


def passes_without_gradient() -> None:
    from megatron_compete.moe import scoring

    layouts.initialize(Layout())
    scored, score = [], scoring.score_tokens
    scoring.score_tokens = lambda *a, **k: scored.append(1) or score(*a, **k)
    layer = build(TASK_ALONE)
    tokens = torch.randn(SEQUENCE, BATCH, HIDDEN)
    with torch.no_grad():
        layer(tokens)
    layer.eval()(tokens.clone().requires_grad_())[0].sum().backward()
    assert not scored and layer._crossing is None
    layer.train()(tokens.clone().requires_grad_())[0].sum().backward()
    assert len(scored) == 1


def test_evaluation_scores_nothing() -> None:
    run_rank(passes_without_gradient)
