"""Latent mixtures of experts, whose responses are those of projected outputs, beside the dense reference."""

import dataclasses
from typing import Any

import pytest
import torch

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig
from megatron_compete.launch import cpu_backend
from megatron_compete.launch.cpu_linear import DuplicatedLinear
from megatron_compete.moe.latent import LatentProjections
from megatron_compete.routing.responses import softplus_response
from tests.moe.layouts import (
    BATCH,
    EXPERTS,
    FFN,
    HIDDEN,
    SEQUENCE,
    SHARED_FFN,
    Layout,
    rest_is_slow,
    transformer_config,
)
from tests.moe.reference import Weights
from tests.moe.steps import Case, Result, check, random_batch, train_on_rank
from tests.moe.test_layouts import STRONG, UTILITY, sampled
from tests.moe.test_recompute import SELECTIVE

LATENT = 8
CENTRED = dataclasses.replace(
    STRONG, response="l2", response_centering="batch", distill_loss="kl", distill_temperature=0.5
)
CASES = {
    "softplus": Case(STRONG),
    "centred": Case(CENTRED),
    "utility": Case(UTILITY),
    "utility-missing": Case(dataclasses.replace(UTILITY, utility_gradient="missing")),
    "normal": Case(STRONG, competes=False),
    "sampled": sampled(CENTRED),
    "sampled-utility": sampled(UTILITY),
}
LAYOUTS = [Layout(), Layout(world=2, ep=2), Layout(world=4, tp=2, ep=2), Layout(world=4, tp=2, ep=2, etp=2)]


def on_rank(*args: Any) -> dict[str, Result]:
    cpu_backend.activate()
    return train_on_rank(*args)


@pytest.mark.parametrize("layout", rest_is_slow(LAYOUTS, LAYOUTS[:3]), ids=str)
def test_layer_equals_dense_reference(layout: Layout) -> None:
    weights = Weights.random(EXPERTS, HIDDEN, FFN, latent=LATENT, shared_ffn=SHARED_FFN)
    settings: dict[str, Any] = dict(moe_latent_size=LATENT, moe_shared_expert_intermediate_size=SHARED_FFN)
    check(layout, random_batch(layout, SEQUENCE, BATCH), CASES, weights, on_rank, **settings)


def test_recomputed_layer_equals_dense_reference() -> None:
    weights = Weights.random(EXPERTS, HIDDEN, FFN, latent=LATENT)
    batch = random_batch(Layout(), SEQUENCE, BATCH)
    check(Layout(), batch, CASES, weights, on_rank, moe_latent_size=LATENT, **SELECTIVE)


def linear(rows: int, columns: int) -> DuplicatedLinear:
    config = transformer_config(Layout())
    return DuplicatedLinear(
        columns, rows, parallel_mode="duplicated", config=config, init_method=torch.nn.init.normal_, bias=True,
        skip_bias_add=False,
    )  # fmt: skip


def test_a_bias_is_added_once_and_is_no_experts_contribution() -> None:
    """As Megatron projects the weighted sum, whatever the weights sum to."""
    latent = LatentProjections(linear(LATENT, HIDDEN), linear(HIDDEN, LATENT), has_bias=True)
    torch.nn.init.normal_(latent.up.bias)  # type: ignore[arg-type]
    outputs_TKL, weights_TK = torch.randn(5, 3, LATENT), torch.rand(5, 3)
    weighted = torch.einsum("tk,tkh->th", weights_TK, latent.contributions(outputs_TKL))
    expected = latent.up(torch.einsum("tk,tkl->tl", weights_TK, outputs_TKL))[0]
    torch.testing.assert_close(latent.add_bias(weighted), expected)
    without = outputs_TKL @ latent.up.weight.T
    torch.testing.assert_close(latent.response(softplus_response)(outputs_TKL), softplus_response(without))


@pytest.mark.parametrize(
    "compete, said",
    [
        (
            CompeteConfig(score_kernel="fused"),
            "--compete-score-kernel fused cannot be used: --moe-latent-size 8: a resp",
        ),
        (CompeteConfig(response_gradients="all"), "not the projections of --moe-latent-size 8"),
    ],
    ids=["fused", "all responses"],
)
def test_what_stays_in_the_latent_space_is_refused(compete: CompeteConfig, said: str) -> None:
    from megatron_compete.moe.validation import check_supported

    config = transformer_config(Layout(), moe_latent_size=LATENT)
    with pytest.raises(CompeteError, match=said):
        check_supported(config, compete)
    check_supported(config, CompeteConfig())
    check_supported(config, CompeteConfig(kind="utility", score_kernel="fused"))
