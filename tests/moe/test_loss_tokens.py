"""Losses of routers under --calculate-per-token-loss, where the loss counts fewer tokens than a layer has: a mean over
microbatches by what the loss counts in each."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_compete.config import CompeteConfig
from tests.moe import layouts
from tests.moe.baselines.layers import build_baseline
from tests.moe.baselines.variable_reference import ROUTERS
from tests.moe.layouts import BATCH, EXPERTS, FFN, HIDDEN, SEQUENCE, Layout
from tests.moe.reference import Weights
from tests.moe.steps import Microbatch, shard_of_rank, trainable
from tests.moe.test_recompute import SELECTIVE
from tests.moe.test_uneven import spread_padding
from tests.ranks import run_rank, run_ranks

COUNTS = [3, 11, 0, 6]
"""Tokens of each microbatch that the loss counts, of SEQUENCE * BATCH."""

OURS = CompeteConfig(
    rate=1.0, max_active_layers=1, distill_coeff=7.0, diversity_coeff=5.0, response_balance_coeff=3.0,
    router_balance_coeff=3.0, router_z_loss_coeff=0.5, balance_loss="top1", score_chunk_tokens=5,
)  # fmt: skip
KINDS = {
    "normal": dataclasses.replace(OURS, rate=1e-9),
    "competing": OURS,
    "sampled": dataclasses.replace(OURS, token_fraction=0.5, balance_loss="entropy"),
}
MEGATRONS: dict[str, Any] = dict(
    moe_router_load_balancing_type=["aux_loss", "seq_aux_loss"], moe_aux_loss_coeff=[30.0, 20.0], moe_z_loss_coeff=1.0
)


def build_stock(layout: Layout, **overrides: Any) -> Any:
    """Megatron's own layer."""
    from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
    from megatron.core.transformer.moe.moe_layer import MoELayer
    from megatron.core.transformer.moe.moe_utils import get_default_pg_collection

    spec = get_moe_module_spec(use_te=False, num_experts=EXPERTS, moe_grouped_gemm=False)
    transformer = layouts.transformer_config(layout, **overrides)
    layer = MoELayer(transformer, spec.keywords["submodules"], pg_collection=get_default_pg_collection())
    layer.set_layer_number(1)
    layouts.load(layer, Weights.random(EXPERTS, HIDDEN, FFN))
    return layer.train()


def builders() -> dict[str, Callable[..., Any]]:
    """Of a layer in a layout: Megatron's, competing ones, and one with a baseline router."""

    def competing(config: CompeteConfig) -> Callable[..., Any]:
        weights = Weights.random(EXPERTS, HIDDEN, FFN)
        return lambda layout, **overrides: layouts.build_layer(layout, weights, config, **MEGATRONS, **overrides)

    def baseline(layout: Layout, **overrides: Any) -> Any:
        remoe, weights = ROUTERS["remoe"], Weights.random(EXPERTS, HIDDEN, FFN)
        given = remoe.overrides | overrides | {"moe_z_loss_coeff": 1.0}
        return build_baseline(layout, "remoe", remoe.settings, weights, **given)

    stock = lambda layout, **overrides: build_stock(layout, **MEGATRONS, **overrides)  # noqa: E731
    return {"stock": stock, "remoe": baseline} | {name: competing(config) for name, config in KINDS.items()}


def microbatch(index: int, layout: Layout) -> Microbatch:
    """This rank's part of the `index`-th; odd ones have padding, as much on each rank."""
    whole = Microbatch.random(SEQUENCE, BATCH, index)
    if index % 2:
        whole = spread_padding(SEQUENCE, index, BATCH, layout.tp * layout.cp)
    mine = shard_of_rank(whole, layout, torch.distributed.get_rank())
    mine.tokens.requires_grad_()
    return mine


def gradients(layer: Any, layout: Layout, indices: list[int], counts: list[int] | None, in_flight: bool) -> list[Tensor]:  # fmt: skip
    """The router's gradient, summed over ranks and microbatches, and those of tokens, of the layer's losses alone.

    Args:
        counts: what the loss counts in each microbatch; None: nobody says so.
        in_flight: all forward passes come before the first backward pass, as at the first stage of a pipeline.
    """
    from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler

    from megatron_compete.moe.loss_tokens import set_loss_tokens

    MoEAuxLossAutoScaler.set_loss_scale(torch.ones(1))
    batch, outputs = [microbatch(index, layout) for index in indices], []
    for number, one in enumerate(batch):
        if counts is not None:
            set_loss_tokens(torch.tensor(counts[number]))
        outputs.append(layer(one.tokens, padding_mask=one.padding)[0])
        if not in_flight:
            (0.0 * outputs.pop().sum()).backward()
        with torch.no_grad():  # evaluation, and whoever looks at a router, say nothing of what trains
            layer.eval()(one.tokens, padding_mask=one.padding)
        layer.train()
    for output in outputs:
        (0.0 * output.sum()).backward()
    torch.distributed.all_reduce(layer.router.weight.grad, group=layer.router.tp_cp_group)
    return [layer.router.weight.grad, *(one.tokens.grad for one in batch)]  # type: ignore[list-item]


def weighed(layout: Layout, recompute: dict[str, Any]) -> None:
    """Each microbatch alone, where nothing is weighed, gives its mean: together they are to give the means by their counts."""
    layouts.initialize(layout)
    per_token = dataclasses.replace(layout, per_token=True)
    everything = list(range(len(COUNTS)))
    for name, build in builders().items():
        alone = [gradients(build(layout), layout, [index], None, False) for index in everything]
        parts = [count * router for count, (router, _) in zip(COUNTS, alone, strict=True)]
        expected = [sum(parts), *(count * tokens for count, (_, tokens) in zip(COUNTS, alone, strict=True))]
        for in_flight in (True, False):
            found = gradients(build(per_token, **recompute), per_token, everything, COUNTS, in_flight)
            for index, (ours, wanted) in enumerate(zip(found, expected, strict=True)):
                scale = float(expected[min(index, 1) * 2].abs().max())  # of the router's, or of the second microbatch's
                assert scale > 1e-2
                difference = float((ours - wanted).abs().max()) / scale
                assert difference < 1e-6, f"{name}, in flight {in_flight}, {index}: off by {difference:.1e}"


@pytest.mark.parametrize("recompute", [{}, SELECTIVE], ids=["", "recomputed"])
@pytest.mark.parametrize("layout", [Layout(), Layout(world=2, tp=2), Layout(world=2, cp=2, ep=2)], ids=str)
def test_losses_are_weighed_by_what_the_loss_counts(layout: Layout, recompute: dict[str, Any]) -> None:
    run_ranks(layout.world, weighed, layout, recompute)


def by_megatrons_schedule(layer: Any, counts: list[int]) -> Tensor:
    """The router's finished gradient of a step of the same microbatch again and again; the loss counts as many tokens of
    each and is 0."""
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from megatron_compete.moe.loss_tokens import set_loss_tokens

    def forward_step(numbers: Iterator[int], model: Any) -> tuple[Tensor, Callable[..., Any]]:
        count = torch.tensor(next(numbers))
        set_loss_tokens(count)
        return model(microbatch(0, Layout()).tokens, None), lambda output: (0.0 * output.sum(), count, {})

    get_forward_backward_func()(
        forward_step_func=forward_step, data_iterator=iter(counts), model=[trainable(layer)],
        num_microbatches=len(counts), seq_length=1, micro_batch_size=1, forward_only=False,
    )  # fmt: skip
    return layer.router.weight.main_grad.clone()


def one_and_four() -> None:
    layouts.initialize(Layout())
    for name, build in builders().items():
        one = by_megatrons_schedule(build(Layout()), [5])
        for per_token in (True, False):
            for recompute in ({}, SELECTIVE):
                found = by_megatrons_schedule(build(Layout(per_token=per_token), **recompute), COUNTS)
                difference = float((found - one).abs().max() / one.abs().max())
                assert difference < 1e-6, f"{name}, per token {per_token}, {recompute}: off by {difference:.1e}"


def test_four_microbatches_with_unequal_masks_are_one() -> None:
    run_rank(one_and_four)


def without_being_told() -> None:
    """A layer that is told nothing weighs by its own tokens, ours as Megatron's, whatever the loss counts."""
    from megatron_compete.moe.loss_tokens import forget_loss_tokens, set_loss_tokens

    layouts.initialize(Layout())
    set_loss_tokens(torch.tensor(3))
    forget_loss_tokens()
    for build in builders().values():
        mean, _ = gradients(build(Layout()), Layout(), [0], None, False)
        per_token, _ = gradients(build(Layout(per_token=True)), Layout(), [0], None, False)
        torch.testing.assert_close(per_token, SEQUENCE * BATCH * mean)


def test_upstream_still_takes_the_layers_tokens() -> None:
    """Fails when Megatron's routers find out by themselves what the loss counts: then `moe/loss_tokens.py` can go."""
    run_rank(without_being_told)


def logged_values(count: int | None) -> dict[str, list[float]]:
    from megatron.core.transformer.moe.moe_logging import get_moe_metrics_tracker

    layouts.initialize(Layout())
    layer = builders()["stock"](Layout(per_token=True))
    gradients(layer, Layout(), [0], None if count is None else [count], False)
    return {name: entry.values.tolist() for name, entry in get_moe_metrics_tracker().metrics.items()}


def test_what_megatron_logs_is_as_before() -> None:
    stock = run_rank(logged_values, None)
    assert set(stock) == {"load_balancing_loss", "seq_load_balancing_loss", "z_loss"}
    assert stock == run_rank(logged_values, 3) == run_rank(logged_values, 0)
