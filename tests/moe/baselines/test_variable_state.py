"""What routers with any number of experts carry from step to step: whom it follows, and what leaves it alone."""

import copy
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_compete.common.errors import CompeteError
from megatron_compete.moe.baselines import BASELINES, check_baseline
from megatron_compete.moe.baselines.config import BaselineConfig
from megatron_compete.moe.baselines.variable import VariableRouter
from tests.moe import layouts
from tests.moe.baselines.layers import build_baseline
from tests.moe.baselines.test_variable import end_step
from tests.moe.baselines.variable_reference import REMOE, ROUTERS
from tests.moe.layouts import BATCH, EXPERTS, FFN, HIDDEN, SEQUENCE, WINNERS, Layout, transformer_config
from tests.moe.reference import Weights
from tests.moe.steps import random_batch
from tests.moe.steps import train_step as train_layer
from tests.ranks import run_rank, run_ranks

TOKENS = torch.randn(SEQUENCE, BATCH, HIDDEN, generator=torch.Generator().manual_seed(3))
RECOMPUTED: dict[str, Any] = {"recompute_granularity": "selective", "recompute_modules": ["moe"]}


def built(name: str, **overrides: Any) -> Any:
    router = ROUTERS[name]
    weights = Weights.random(EXPERTS, HIDDEN, FFN)
    return build_baseline(Layout(), name, router.settings, weights, **(router.overrides | overrides))


def state_of(layer: Any) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in layer.router.named_buffers()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def train(layer: Any, tokens: Tensor = TOKENS) -> Tensor:
    """A step of one microbatch."""
    output, _ = layer(tokens.clone().requires_grad_())
    output.square().sum().backward()
    end_step(layer)
    return output.detach()


def single_rank() -> None:
    """Everything that one rank can show, in one process: importing and starting it takes longer than all of it."""
    layouts.initialize(Layout())
    for name in ROUTERS:
        goes_on_from_a_state_dict(name)
        only_training_changes_it(name)
        keeps_fp32(name)
        recomputes_the_same(name)
    an_untrained_threshold_is_the_batchs_own()
    threshold_does_not_see_the_future()
    warms_up_with_the_batchs_own()
    no_expert_at_all()
    host_knows_the_rows()
    reports_experts_per_token()


def test_state_of_one_rank() -> None:
    run_rank(single_rank)


def goes_on_from_a_state_dict(name: str) -> None:
    """Bit for bit: the state's own values, and those that follow."""
    layer = built(name)
    for seed in range(3):
        train(layer, TOKENS + seed)
    other = built(name)
    other.load_state_dict(copy.deepcopy(layer.state_dict()))
    assert same(state_of(layer), state_of(other)) and not same(state_of(layer), state_of(built(name)))
    assert torch.equal(train(layer), train(other))
    assert same(state_of(layer), state_of(other))


def only_training_changes_it(name: str) -> None:
    """Neither evaluation, nor a pass without gradient, nor a step whose tokens are all padding."""
    layer = built(name)
    train(layer)
    before = state_of(layer)
    layer.eval()(TOKENS * 2)
    with torch.no_grad():
        layer.train()(TOKENS * 3)
    assert layer.router.observed is None
    layer(TOKENS.clone().requires_grad_(), padding_mask=torch.ones(BATCH, SEQUENCE, dtype=torch.bool))
    end_step(layer)
    assert same(state_of(layer), before)


def keeps_fp32(name: str) -> None:
    """Through the cast of Megatron's Float16Module, to the bit."""
    layer = built(name, params_dtype=torch.bfloat16)
    train(layer, TOKENS.bfloat16())
    before = state_of(layer)
    assert not same(before, {key: value.bfloat16().float() for key, value in before.items()})
    layer.bfloat16()
    assert layer.router.weight.dtype == torch.bfloat16
    assert same(state_of(layer), before)
    assert all(
        buffer.dtype == torch.float32 for buffer in layer.router.state_dict().values() if buffer.numel() < HIDDEN
    )


def recomputes_the_same(name: str) -> None:
    """The first of a recomputed layer's two passes counts for nothing, before and after there is a state."""
    plain, recomputed = built(name), built(name, **RECOMPUTED)
    for seed in range(2):
        assert torch.equal(train(plain, TOKENS + seed), train(recomputed, TOKENS + seed))
        assert same(state_of(plain), state_of(recomputed))
    pairs = zip(plain.parameters(), recomputed.parameters(), strict=True)
    assert all(torch.equal(one.grad, other.grad) for one, other in pairs)


def an_untrained_threshold_is_the_batchs_own() -> None:
    """The first step takes exactly its budget, and so does an evaluation before it."""
    layer = built("usmoe")
    assert layer.eval().router(TOKENS)[1].sum() == TOKENS[..., 0].numel() * WINNERS
    assert layer.train().router(TOKENS)[1].sum() == TOKENS[..., 0].numel() * WINNERS
    chosen = built("threshold").router(TOKENS)[1]
    assert chosen.sum(dim=0).tolist() == [TOKENS[..., 0].numel() * WINNERS // EXPERTS] * EXPERTS


def threshold_does_not_see_the_future() -> None:
    """Other tokens at the end: those before keep their experts, and their outputs but for rounding, in either mode."""
    for name in ("usmoe", "threshold"):
        layer = built(name)
        train(layer)
        other = torch.cat([TOKENS[:-2], -3 * TOKENS[-2:]])
        before = len(TOKENS[:-2]) * BATCH
        for mode in (True, False):
            layer.train(mode)
            one, same_start = (layer.router(tokens)[1] for tokens in (TOKENS, other))
            assert torch.equal(one[:before], same_start[:before]) and not torch.equal(one, same_start)
            outputs = [layer(tokens)[0][:-2] for tokens in (TOKENS, other)]
            torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)


def warms_up_with_the_batchs_own() -> None:
    """In training only; evaluation takes the stored one from the first step on."""
    layer = build_baseline(Layout(), "usmoe", BaselineConfig(threshold_warmup=3), Weights.random(EXPERTS, HIDDEN, FFN))
    budget = TOKENS[..., 0].numel() * WINNERS
    taken = []
    for step in range(4):
        tokens = TOKENS * (1 + step)
        taken.append(int(layer.train().router(tokens)[1].sum()))
        if step:
            assert layer.eval().router(tokens)[1].sum() != budget
        train(layer.train(), tokens)
    assert taken[:3] == [budget] * 3 and taken[3] != budget


def no_expert_at_all() -> None:
    """Every logit below 0: outputs and gradients are 0, the penalty's coefficient falls, and nothing is NaN."""
    weights = Weights.random(EXPERTS, HIDDEN, FFN)
    weights.router[:] = -1.0
    layer = build_baseline(Layout(), "remoe", REMOE, weights)
    tokens = TOKENS.abs().requires_grad_()
    output, _ = layer(tokens)
    (output.sum() + 1).backward()
    end_step(layer)
    assert not output.any() and not tokens.grad.any() and not layer.router.weight.grad.any()
    torch.testing.assert_close(layer.router.l1_coefficient, torch.tensor([REMOE.l1_init / REMOE.l1_factor]))


def host_knows_the_rows() -> None:
    """The first permutation, fused or not, is told the map's sum, after the metadata has come to the host."""
    from megatron.core.transformer.moe import token_dispatcher

    upstream, seen = token_dispatcher.permute, []
    for fused in (False, True):
        layer = built("remoe")
        layer.config.moe_permute_fusion = fused
        events: list[str] = []
        arrived = layer.token_dispatcher._maybe_dtoh_and_synchronize

        def permute(*args: Any, events: list[str] = events, **kwargs: Any) -> Any:
            events.append("permute")
            seen.append((kwargs["fused"], kwargs["num_out_tokens"], args[1].sum()))
            return upstream(*args, **(kwargs | {"fused": False}))

        def record(point: str, *rest: Any, events: list[str] = events, arrived: Any = arrived) -> Any:
            events.append(point)
            return arrived(point, *rest)

        token_dispatcher.permute, layer.token_dispatcher._maybe_dtoh_and_synchronize = permute, record
        try:
            dispatcher = layer.token_dispatcher
            weights, routing_map = layer.router(TOKENS)
            dispatcher.dispatch_preprocess(TOKENS, routing_map, weights)
        finally:
            token_dispatcher.permute = upstream
        assert events == ["before_permutation_1", "permute"]
        assert dispatcher.cuda_sync_point == dispatcher.cuda_dtoh_point == "before_permutation_1"
    assert [fused for fused, _, _ in seen] == [False, True]
    assert all(rows == expected != TOKENS[..., 0].numel() * WINNERS for _, rows, expected in seen)


def reports_experts_per_token() -> None:
    """Of two microbatches; evaluation does not count."""
    from megatron.core.transformer.moe.moe_logging import get_moe_metrics_tracker

    from megatron_compete.moe.baselines.metrics import install_variable_metrics

    install_variable_metrics()
    layer = built("remoe")
    maps = [layer.router(tokens)[1] for tokens in (TOKENS, 1 - TOKENS)]
    layer.eval()(TOKENS - 5)
    scalars: dict[str, float] = {}
    writer = SimpleNamespace(add_scalar=lambda name, value, step: scalars.update({name: float(value)}))
    get_moe_metrics_tracker().report(0.5, 1, writer, track_names=[], num_layers=1, moe_layer_freq=1)
    expected = sum(int(chosen.sum()) for chosen in maps) / (2 * TOKENS[..., 0].numel())
    assert scalars == {"experts_per_token": pytest.approx(expected)} and expected != WINNERS


def state_of_split_batch(layout: Layout) -> dict[str, dict[str, Tensor]]:
    """Two microbatches, beside each other on two ranks or after each other on one."""
    layouts.initialize(layout)
    microbatches = [of_rank[0] for of_rank in random_batch(Layout(world=2), SEQUENCE, BATCH)]
    states = {}
    for name, router in ROUTERS.items():
        layer = build_baseline(layout, name, router.settings, Weights.random(EXPERTS, HIDDEN, FFN), **router.overrides)
        train_layer(layer, layout, [microbatches] if layout.world == 1 else [[m] for m in microbatches])
        end_step(layer)
        states[name] = state_of(layer)
    return states


def test_state_follows_all_microbatches_alike() -> None:
    """Accumulated, on two data parallel ranks, and with the experts on two ranks: alike, and the same bits on both ranks.

    Default vectors are means of experts' outputs, whose rounding follows the rows that an expert has at a time.
    """
    (accumulated,) = run_ranks(1, state_of_split_batch, Layout())
    for layout in (Layout(world=2), Layout(world=2, ep=2)):
        one, other = run_ranks(2, state_of_split_batch, layout)
        for name, state in accumulated.items():
            assert same(one[name], other[name]), (layout, name)
            if name == "default-moe" and layout.ep > 1:
                torch.testing.assert_close(one[name], state, rtol=1e-6, atol=1e-6)
            else:
                assert same(one[name], state), (layout, name)


def coefficients_of_stages() -> list[float]:
    """Two pipeline stages: the second first dense, then with a layer that takes all pairs where the first takes few."""
    from megatron.core import parallel_state

    torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel(pipeline_model_parallel_size=2)
    stage = parallel_state.get_pipeline_model_parallel_rank()
    pipeline = parallel_state.get_pipeline_model_parallel_group()
    from megatron_compete.moe.baselines import step

    weights = Weights.random(EXPERTS, HIDDEN, FFN)
    weights.router[:] = -1.0
    weights.router[: 2 if stage == 0 else EXPERTS] = 1.0
    layer = build_baseline(Layout(), "remoe", REMOE, weights)
    found = []
    for chunk in (layer if stage == 0 else torch.nn.Linear(1, 1), layer):
        if chunk is layer:
            layer(TOKENS.abs().requires_grad_())
        step.end_step([chunk], layer.router.num_of_model, pipeline)
        found.append(float(layer.router.l1_coefficient))
    return found


def test_one_coefficient_for_all_pipeline_stages() -> None:
    """2 of 8 experts a token is below the budget of 3; together with a layer that takes 8 it is above, on both."""
    first, second = run_ranks(2, coefficients_of_stages)
    start, factor = REMOE.l1_init, REMOE.l1_factor
    assert first == pytest.approx([start / factor, start])
    assert second == pytest.approx([start, start * factor])


@pytest.mark.parametrize(
    "router", [name for name, baseline in BASELINES.items() if issubclass(baseline.router, VariableRouter)]
)
@pytest.mark.parametrize(
    ("flag", "overrides"),
    [
        ("--moe-router-score-function", dict(moe_router_score_function="sigmoid")),
        ("--moe-router-pre-softmax", dict(moe_router_pre_softmax=True)),
        ("--moe-expert-capacity-factor", dict(moe_expert_capacity_factor=1.5)),
        ("--moe-router-enable-expert-bias", dict(moe_router_score_function="sigmoid", moe_router_enable_expert_bias=True)),
        ("--moe-router-load-balancing-type", dict(moe_router_load_balancing_type="seq_aux_loss", moe_aux_loss_coeff=0.1)),
        ("--moe-router-load-balancing-type", dict(moe_router_load_balancing_type="sinkhorn")),
    ],
)  # fmt: skip
def test_settings_of_a_choice_of_k_experts_are_refused(router: str, flag: str, overrides: dict[str, Any]) -> None:
    config = transformer_config(Layout(), **overrides)
    if flag == "--moe-router-enable-expert-bias":
        config.moe_router_score_function = "softmax"  # Megatron allows the bias with sigmoid alone
    with pytest.raises(CompeteError, match=rf"{flag} .*--router {router}"):
        check_baseline(router, config, BaselineConfig())


def test_megatrons_balance_loss_is_for_routers_that_do_not_balance_by_themselves() -> None:
    config = transformer_config(Layout(), moe_router_load_balancing_type="aux_loss", moe_aux_loss_coeff=0.1)
    for router in ("usmoe", "default-moe"):
        check_baseline(router, config, BaselineConfig())
    for router in ("remoe", "threshold"):
        with pytest.raises(
            CompeteError, match=re.escape(f"--moe-aux-loss-coeff 0.1 does not work with --router {router}")
        ):
            check_baseline(router, config, BaselineConfig())


@pytest.mark.parametrize("gap", [10.0, 50.0, 89.0, 95.0, 105.0])
def test_default_vectors_stay_finite_whatever_the_weights(gap: float) -> None:
    run_rank(observe_a_small_weight, gap)


def observe_a_small_weight(gap: float) -> None:
    """Two experts of one token, the second of a weight of exp(-gap): it is observed where that is no rounding."""
    layouts.initialize(Layout())
    router = build_baseline(Layout(), "default-moe", BaselineConfig(default_decay=0.5), moe_router_topk=2).router
    logits = torch.full((1, 1, EXPERTS), -300.0)
    logits[..., 0], logits[..., 1] = 0.0, -gap
    weights, chosen = router.routing(logits)
    raw = torch.tensor([[2.0], [4.0]]).expand(2, HIDDEN)
    router.observe_rows(raw * weights[chosen].unsqueeze(-1))
    router.end_step(router.observed)
    assert router.default_outputs.isfinite().all()
    torch.testing.assert_close(router.default_outputs[0], torch.full((HIDDEN,), 1.0))
    expected = 2.0 if gap == 10.0 else 0.0
    torch.testing.assert_close(router.default_outputs[1], torch.full((HIDDEN,), expected), rtol=1e-5, atol=0)
