"""Losses of routers under --calculate-per-token-loss, where the loss counts fewer tokens than a layer has: a mean over
microbatches by what the loss counts in each."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_compete.config import CompeteConfig
from tests.moe import layouts
from tests.moe.layouts import BATCH, EXPERTS, FFN, HIDDEN, SEQUENCE, Layout
from tests.moe.reference import Weights
from tests.moe.steps import Microbatch, shard_of_rank
from tests.moe.test_recompute import SELECTIVE
from tests.ranks import run_rank, run_ranks

COUNTS = [3, 11, 0, 6]
"""Tokens of each microbatch that the loss counts, of SEQUENCE * BATCH."""
OURS = CompeteConfig(
    rate=1.0, max_active_layers=1, distill_coeff=7.0, diversity_coeff=5.0, response_balance_coeff=3.0,
    router_balance_coeff=3.0, router_z_loss_coeff=0.5, balance_loss="top1", score_chunk_tokens=5,
)  # fmt: skip
NORMAL = dataclasses.replace(OURS, rate=1e-9)
SAMPLED = dataclasses.replace(OURS, token_fraction=0.5, balance_loss="entropy")
MEGATRONS: dict[str, Any] = dict(
    moe_router_load_balancing_type=["aux_loss", "seq_aux_loss"], moe_aux_loss_coeff=[30.0, 20.0], moe_z_loss_coeff=1.0
)
KINDS: dict[str, tuple[CompeteConfig | None, dict[str, Any]]] = {
    "stock": (None, MEGATRONS),
    "normal": (NORMAL, MEGATRONS),
    "competing": (OURS, MEGATRONS),
    "sampled": (SAMPLED, MEGATRONS),
}


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Ranks are processes of their own; this is for tests without any."""
    from megatron_compete.moe.loss_tokens import forget_loss_tokens

    yield
    forget_loss_tokens()


def build(config: CompeteConfig | None, layout: Layout, **overrides: Any) -> Any:
    """A competing layer, or Megatron's own."""
    weights = Weights.random(EXPERTS, HIDDEN, FFN)
    if config is not None:
        return layouts.build_layer(layout, weights, config, **overrides)
    from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
    from megatron.core.transformer.moe.moe_layer import MoELayer
    from megatron.core.transformer.moe.moe_utils import get_default_pg_collection

    spec = get_moe_module_spec(use_te=False, num_experts=EXPERTS, moe_grouped_gemm=False)
    transformer = layouts.transformer_config(layout, **overrides)
    layer = MoELayer(transformer, spec.keywords["submodules"], pg_collection=get_default_pg_collection())
    layer.set_layer_number(1)
    layouts.load(layer, weights)
    return layer.train()


def gradients(layer: Any, layout: Layout, counts: list[int], in_flight: bool = True, told: bool = True) -> list[Tensor]:
    """The router's gradient and those of tokens, of losses of the layer alone, as Megatron sums them over microbatches.

    Args:
        in_flight: all forward passes come before the first backward pass, as at the first stages of a pipeline.
        told: whether the layer knows what the loss counts.
    """
    from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler

    from megatron_compete.moe.loss_tokens import set_loss_tokens

    MoEAuxLossAutoScaler.set_loss_scale(torch.ones(1))
    mine = [shard_of_rank(Microbatch.random(SEQUENCE, BATCH, s), layout, torch.distributed.get_rank()) for s in range(len(counts))]  # fmt: skip
    tokens = [one.tokens.requires_grad_() for one in mine]
    outputs = []
    for one, count in zip(tokens, counts, strict=True):
        if told:
            set_loss_tokens(torch.tensor(count))
        outputs.append(layer(one)[0])
        if not in_flight:
            (0.0 * outputs[-1].sum()).backward()
    for output in outputs if in_flight else []:
        (0.0 * output.sum()).backward()
    group = layer.router.tp_cp_group
    grad = layer.router.weight.grad
    torch.distributed.all_reduce(grad, group=group)
    return [grad, *(one.grad for one in tokens)]


def weighed_by_what_the_loss_counts(layout: Layout, recompute: dict[str, Any]) -> None:
    """Each microbatch alone gives its mean; all of them together the means by their counts."""
    layouts.initialize(layout)
    per_token = dataclasses.replace(layout, per_token=True)
    for name, (config, losses) in KINDS.items():
        alone = []
        for index in range(len(COUNTS)):  # without per-token loss, where nothing is weighed
            layer = build(config, layout, **losses)
            others = [0] * len(COUNTS)
            single = gradients_of_one(layer, layout, index)
            assert single[0].abs().max() > 1e-3 and others
            alone.append(single)
        expected = [
            sum(count * one[0] for count, one in zip(COUNTS, alone, strict=True)),
            *(count * one[1] for count, one in zip(COUNTS, alone, strict=True)),
        ]
        for in_flight in (True, False):
            layer = build(config, per_token, **losses, **recompute)
            found = gradients(layer, per_token, COUNTS, in_flight)
            for ours, wanted in zip(found, expected, strict=True):
                scale = max(float(one.abs().max()) for one in expected)
                torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6 * scale, msg=f"{name}, {in_flight}")


def gradients_of_one(layer: Any, layout: Layout, index: int) -> tuple[Tensor, Tensor]:
    """The router's gradient and that of the tokens, of the `index`-th microbatch by itself."""
    from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler

    MoEAuxLossAutoScaler.set_loss_scale(torch.ones(1))
    tokens = shard_of_rank(Microbatch.random(SEQUENCE, BATCH, index), layout, torch.distributed.get_rank()).tokens
    (0.0 * layer(tokens.requires_grad_())[0].sum()).backward()
    torch.distributed.all_reduce(layer.router.weight.grad, group=layer.router.tp_cp_group)
    return layer.router.weight.grad, tokens.grad  # type: ignore[return-value]


@pytest.mark.parametrize("recompute", [{}, SELECTIVE], ids=["", "recomputed"])
@pytest.mark.parametrize("layout", [Layout(), Layout(world=2, tp=2), Layout(world=2, cp=2, ep=2)], ids=str)
def test_losses_are_weighed_by_what_the_loss_counts(layout: Layout, recompute: dict[str, Any]) -> None:
    run_ranks(layout.world, weighed_by_what_the_loss_counts, layout, recompute)
