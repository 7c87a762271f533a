"""What Megatron's router does besides choosing, at competing steps: balance losses, z-loss, jitter, counts of the expert bias."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_compete.config import CompeteConfig
from tests.moe import layouts
from tests.moe.layouts import BATCH, EXPERTS, FFN, HIDDEN, SEQUENCE, WINNERS, Layout
from tests.moe.reference import Weights
from tests.moe.steps import random_batch, train_step
from tests.moe.test_layouts import FRACTION
from tests.moe.test_recompute import SELECTIVE
from tests.moe.test_router_settings import SETTINGS
from tests.ranks import run_rank, run_ranks

NO_LOSSES = dict(
    distill_coeff=0.0, diversity_coeff=0.0, response_balance_coeff=0.0, router_balance_coeff=0.0, score_chunk_tokens=5
)
RESPONSE = CompeteConfig(rate=1.0, max_active_layers=1, **NO_LOSSES)  # type: ignore[arg-type]
UTILITY = CompeteConfig(kind="utility", rate=1.0, max_active_layers=1, router_balance_coeff=0.0)
NEVER = dataclasses.replace(RESPONSE, rate=1e-9)
KINDS = {"normal": NEVER, "response": RESPONSE, "utility": UTILITY}
KINDS |= {
    f"sampled {kind}": dataclasses.replace(KINDS[kind], token_fraction=FRACTION) for kind in ("response", "utility")
}

LOSSES: dict[str, dict[str, Any]] = {
    "one": dict(moe_router_load_balancing_type="aux_loss", moe_aux_loss_coeff=30.0),
    "sequence, z": dict(moe_router_load_balancing_type="seq_aux_loss", moe_aux_loss_coeff=30.0, moe_z_loss_coeff=1.0),
    "all": dict(
        moe_router_load_balancing_type=["aux_loss", "seq_aux_loss", "global_aux_loss"],
        moe_aux_loss_coeff=[30.0, 20.0, 10.0], moe_z_loss_coeff=1.0, moe_router_score_function="sigmoid",
        moe_router_enable_expert_bias=True,
    ),
}  # fmt: skip


ONE_RANK = Layout()


def build(config: CompeteConfig, layout: Layout = ONE_RANK, **overrides: Any) -> Any:
    return layouts.build_layer(layout, Weights.random(EXPERTS, HIDDEN, FFN), config, **overrides)


def logged() -> dict[str, Tensor]:
    """What the routers left in Megatron's tracker, which is then empty."""
    from megatron.core.transformer.moe.moe_logging import get_moe_metrics_tracker

    tracker = get_moe_metrics_tracker()
    values = {name: entry.values.clone() for name, entry in tracker.metrics.items()}
    tracker.clear()
    return values


def what_losses_add(layout: Layout, losses: dict[str, Any], overrides: dict[str, Any]) -> None:
    """A kind of step with the router's losses less the same without: gradients and log are those of a normal step."""
    layouts.initialize(layout)
    off = {"moe_router_load_balancing_type": "none", "moe_aux_loss_coeff": 0.0, "moe_z_loss_coeff": None}
    added, logs = {}, {}
    for kind, config in KINDS.items():
        results = []
        for more in ({}, off):
            logged()
            torch.manual_seed(3)  # of jitter
            result = train_step(build(config, layout, **(losses | more | overrides)), layout, random_batch(layout, SEQUENCE, BATCH))  # fmt: skip
            results.append([result.weight_grads["router"], *result.token_grads])
            logs.setdefault(kind, logged())
        added[kind] = [one - other for one, other in zip(*results, strict=True)]
    assert logs["normal"] and all(value.abs().sum() > 0 for value in logs["normal"].values())
    for kind in list(KINDS)[1:]:
        assert logs[kind].keys() == logs["normal"].keys()
        assert all(torch.equal(logs[kind][name], value) for name, value in logs["normal"].items())
        for normal, ours in zip(added["normal"], added[kind], strict=True):
            assert normal.abs().max() > 1e-3
            torch.testing.assert_close(ours, normal, rtol=1e-4, atol=2e-5 * float(normal.abs().max()))


@pytest.mark.parametrize(
    "layout", [Layout(), Layout(world=4, tp=2, ep=2), Layout(world=2, cp=2, ep=2, per_token=True)], ids=str
)
@pytest.mark.parametrize("name", LOSSES)
def test_competing_steps_carry_the_routers_losses(layout: Layout, name: str) -> None:
    run_ranks(layout.world, what_losses_add, layout, LOSSES[name], {})


@pytest.mark.parametrize(
    "overrides",
    [SELECTIVE, dict(moe_input_jitter_eps=0.3), dict(moe_expert_capacity_factor=0.7)],
    ids=["recomputed", "jittered", "dropped"],
)
def test_whatever_else_a_router_does(overrides: dict[str, Any]) -> None:
    run_rank(what_losses_add, Layout(), LOSSES["all"], overrides)


def jittered_logits() -> None:
    layouts.initialize(Layout())
    layer, hidden_states = build(RESPONSE, moe_input_jitter_eps=0.3), torch.randn(SEQUENCE, BATCH, HIDDEN)
    layer.route(hidden_states)
    assert (layer._outcome.logits - layer.router.gating(hidden_states).flatten(0, 1)).abs().max() > 1e-3


def test_competing_steps_jitter_the_routers_input() -> None:
    run_rank(jittered_logits)


BIASED: dict[str, Any] = dict(
    moe_router_score_function="sigmoid", moe_router_enable_expert_bias=True, moe_router_num_groups=4,
    moe_router_group_topk=2, moe_router_bias_update_rate=0.01,
)  # fmt: skip


def biases_after(layout: Layout, overrides: dict[str, Any]) -> None:
    """A step of two microbatches: what is counted, and the biases after it, are a normal step's."""
    from megatron.core.distributed import finalize_model_grads

    layouts.initialize(layout)
    found = []
    for config in KINDS.values():
        layer = build(config, layout, **BIASED, **overrides)
        counted: list[Tensor] = []

        def finalize(*args: Any, _layer: Any = layer, _counted: list[Tensor] = counted, **kwargs: Any) -> None:
            _counted.append(_layer.router.local_tokens_per_expert.clone())
            finalize_model_grads(*args, **kwargs)

        train_step(layer, layout, random_batch(layout, SEQUENCE, BATCH), finalize=finalize)
        with torch.no_grad():  # evaluation, and a first pass that is recomputed
            layer.eval()(torch.randn(SEQUENCE, BATCH, HIDDEN))
            layer.train()(torch.randn(SEQUENCE, BATCH, HIDDEN))
        layer.router.would_choose(torch.randn(SEQUENCE, BATCH, EXPERTS))
        assert layer.router.local_tokens_per_expert.sum() == 0
        found.append((counted[0], layer.router.expert_bias.clone()))
    for counts, bias in found:
        assert counts.sum() == 2 * SEQUENCE * BATCH * WINNERS // layout.tp
        assert torch.equal(counts, found[0][0]) and torch.equal(bias, found[0][1]) and bias.abs().max() > 0


@pytest.mark.parametrize("overrides", [{}, SELECTIVE], ids=["", "recomputed"])
@pytest.mark.parametrize("layout", [Layout(), Layout(world=4, tp=2, ep=2)], ids=str)
def test_expert_bias_counts_what_the_router_would_have_chosen(layout: Layout, overrides: dict[str, Any]) -> None:
    run_ranks(layout.world, biases_after, layout, overrides)


def forced_loads() -> None:
    """Winners go where a normal step's tokens go: where random logits send them."""
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    from megatron_compete.launch import cpu_backend

    cpu_backend.activate()
    layouts.initialize(Layout())
    for forced in (dict(moe_router_force_load_balancing=True), dict(moe_router_force_biased=2.0)):
        maps = []
        for config in KINDS.values():
            layer = build(config, **forced)
            model_parallel_cuda_manual_seed(7)
            maps.append(layer.route(torch.ones(SEQUENCE, BATCH, HIDDEN))[1])
        assert all(torch.equal(maps[0], other) for other in maps[1:])
        assert (maps[0].sum(0) > 0).sum() > WINNERS  # alike tokens go to more than their K experts


def test_forced_load_balancing_forces_winners_too() -> None:
    run_rank(forced_loads)


def other_selections() -> None:
    """Sinkhorn and quantile balancing choose by other means: agreement and weights follow them, and betas go on."""
    layouts.initialize(Layout())
    tokens = torch.randn(SEQUENCE, BATCH, HIDDEN, generator=torch.Generator().manual_seed(5))
    for balancing in ("sinkhorn", "quantile_balancing"):
        betas = []
        for config in KINDS.values():
            layer = build(config, moe_router_load_balancing_type=balancing, moe_router_topk_scaling_factor=1.5)
            if layer.router.qb_beta is not None:
                layer.router.qb_beta.copy_(0.3 * torch.randn(EXPERTS, generator=torch.Generator().manual_seed(6)))
            with layer.router.keep_logits() as kept:
                probs_TE, routing_map_TE = layer.router(tokens)
            if layer.router.qb_beta is not None:
                layer.router.qb_beta_accum.zero_()
            layer(tokens)[0].sum().backward()
            assert torch.equal(layer.router.would_choose(kept[0]), routing_map_TE)
            total = layer.router.weight_sum(kept[0], routing_map_TE)
            torch.testing.assert_close(torch.as_tensor(total).expand(len(probs_TE), 1), probs_TE.sum(1, keepdim=True))
            layer.route(tokens)
            if layer._outcome is not None:
                assert torch.equal(layer._outcome.choice_TE, layer._outcome.sample.take(routing_map_TE))
            betas.append(layer.router.qb_beta_accum)
        if balancing == "quantile_balancing":
            assert betas[0].abs().max() > 0 and all(torch.equal(betas[0], other) for other in betas[1:])


def test_routers_that_choose_by_other_means() -> None:
    run_rank(other_selections)


def beside_megatrons(overrides: dict[str, Any]) -> None:
    """A layer whose competition is off, and Megatron's own: output and all gradients of two microbatches."""
    from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
    from megatron.core.transformer.moe.moe_layer import MoELayer
    from megatron.core.transformer.moe.moe_utils import get_default_pg_collection

    layouts.initialize(Layout())
    spec = get_moe_module_spec(use_te=False, num_experts=EXPERTS, moe_grouped_gemm=False)
    transformer = layouts.transformer_config(Layout(), **overrides)
    stock = MoELayer(transformer, spec.keywords["submodules"], pg_collection=get_default_pg_collection())
    stock.set_layer_number(1)
    layouts.load(stock, Weights.random(EXPERTS, HIDDEN, FFN))
    ours = build(CompeteConfig(rate=0.0), **overrides)
    results = []
    for layer in (stock.train(), ours):
        if layer.router.expert_bias is not None:
            layer.router.expert_bias.copy_(torch.linspace(-0.3, 0.3, EXPERTS))
        result = train_step(layer, Layout(), random_batch(Layout(), SEQUENCE, BATCH))
        results.append([*result.outputs, *result.token_grads, *result.weight_grads.values()])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("name", SETTINGS)
def test_rate_zero_is_megatrons_layer_to_the_bit(name: str) -> None:
    run_rank(beside_megatrons, LOSSES["sequence, z"] | SETTINGS[name].overrides())
