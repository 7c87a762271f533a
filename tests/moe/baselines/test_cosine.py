"""The cosine routers in Megatron's layer: against a dense reference in fp64, in several layouts, and their parameters."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_compete.common.errors import CompeteError
from megatron_compete.moe.baselines.config import BaselineConfig
from tests.moe import layouts
from tests.moe.baselines.layers import build_baseline
from tests.moe.layouts import BATCH, EXPERTS, FFN, HIDDEN, SEQUENCE, Layout
from tests.moe.reference import Weights, expert_outputs
from tests.moe.steps import Batch, Result, assert_close, assert_equal_to_reference, random_batch, reference_step
from tests.moe.steps import train_step as train_layer
from tests.ranks import run_rank, run_ranks

DIM = EXPERTS // 2
ROUTERS = {
    "xmoe": BaselineConfig(learn_temperature=True),
    "cosine": BaselineConfig(temperature=0.2, perturbation=0.4, dim=DIM),
}
LAYOUTS = [Layout(), Layout(world=2, ep=2), Layout(world=4, tp=2, ep=2, etp=2)]


def given_weights() -> tuple[Weights, Tensor]:
    """Embeddings [E, D] as the router's weight, and a projection [D, H]."""
    random = torch.Generator().manual_seed(5)
    embeddings, projection = (torch.randn(n, m, generator=random) * 0.3 for n, m in ((EXPERTS, DIM), (DIM, HIDDEN)))
    return replace(Weights.random(EXPERTS, HIDDEN, FFN), router=embeddings), projection


def reference_logits(router: str, projected: Tensor, experts: Tensor, log_temperature: Tensor) -> Tensor:
    """The formulas, in torch's own cosine or written out."""
    if router == "xmoe":
        return F.cosine_similarity(projected[:, None], experts, dim=-1) / log_temperature.exp()
    settings = ROUTERS[router]
    norms = (projected.norm(dim=-1)[:, None] + settings.perturbation) * (experts.norm(dim=-1) + settings.perturbation)
    return projected @ experts.T / norms / settings.temperature


def reference(router: str, batch: Batch, layout: Layout) -> tuple[list[Result], Tensor, Tensor | None]:
    """The step in fp64, and the gradients of the projection and of the temperature's logarithm."""
    weights, projection = given_weights()
    projection = projection.double().requires_grad_()
    log_temperature = torch.tensor(ROUTERS[router].temperature, dtype=torch.float64).log().requires_grad_()

    def step(tokens: Tensor, weights: Weights, k: int, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
        logits = reference_logits(router, tokens @ projection.T, weights.router, log_temperature)
        top = logits.topk(k)
        gates = torch.zeros_like(logits).scatter(1, top.indices, top.values.softmax(-1))
        output = torch.einsum("te,teh->th", gates, expert_outputs(tokens, weights))
        return output, output.new_zeros(()), top.indices

    results = reference_step(batch, weights, layout, None, step)  # type: ignore[arg-type]
    assert projection.grad is not None
    return results, projection.grad, log_temperature.grad


def train_on_rank(layout: Layout, batch: Batch) -> dict[str, tuple[Result, Tensor, Tensor | None]]:
    layouts.initialize(layout)
    results = {}
    for name, settings in ROUTERS.items():
        weights, projection = given_weights()
        layer = build_baseline(layout, name, settings, weights)
        layer.router.projection.data.copy_(projection)
        result = train_layer(layer, layout, batch)
        learnt = layer.router.log_temperature
        results[name] = result, layer.router.projection.main_grad, None if learnt is None else learnt.main_grad
    return results


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_layer_equals_dense_reference(layout: Layout) -> None:
    batch = random_batch(layout, SEQUENCE, BATCH)
    per_rank = run_ranks(layout.world, train_on_rank, layout, batch)
    for name in ROUTERS:
        expected, projection_grad, temperature_grad = reference(name, batch, layout)
        assert_equal_to_reference([results[name][0] for results in per_rank], expected, layout)
        for results in per_rank:
            assert_close(results[name][1], projection_grad, projection_grad.abs().max(), 1e-5, f"{name} projection")
            if name == "xmoe":
                assert temperature_grad is not None and temperature_grad != 0
                assert_close(results[name][2].squeeze(), temperature_grad, temperature_grad.abs(), 1e-5, "temperature")


def built_routers() -> dict[str, Any]:
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    layouts.initialize(Layout())
    model_parallel_cuda_manual_seed(1)
    torch.manual_seed(1)
    layer = build_baseline(Layout(), "xmoe", ROUTERS["xmoe"], params_dtype=torch.bfloat16, sequence_parallel=False)
    wide = build_baseline(Layout(), "cosine", ROUTERS["cosine"], moe_router_dtype="fp64", add_bias_linear=True)
    inputs = torch.randn(4, 2, HIDDEN)
    loaded = build_baseline(Layout(), "cosine", ROUTERS["cosine"])
    loaded.load_state_dict(wide.state_dict(), strict=False)
    return {
        "parameters": {name: (p.shape, p.dtype, p.sequence_parallel) for name, p in layer.router.named_parameters()},
        "spread": {name: float(p.float().std()) for name, p in layer.router.named_parameters() if p.numel() > 1},
        "temperature": float(layer.router.temperature()),
        "sharded": sorted(layer.router.sharded_state_dict()),
        "bfloat16": layer.router.gating(inputs.bfloat16()).dtype,
        "fp64": wide.router.gating(inputs).dtype,
        "none": wide.router.gating(inputs[:0]).shape,
        "bias": wide.router.bias,
        "same": bool((loaded.router.gating(inputs) - wide.router.gating(inputs)).abs().max() < 1e-5),
    }


def test_parameters_follow_megatrons_router() -> None:
    built = run_rank(built_routers)
    assert built["parameters"] == {
        "weight": ((EXPERTS, DIM), torch.bfloat16, False),
        "projection": ((DIM, HIDDEN), torch.bfloat16, False),
        "log_temperature": ((1,), torch.bfloat16, False),
    }
    assert all(0.01 < std < 0.03 for std in built["spread"].values())  # --init-method-std 0.02
    assert abs(built["temperature"] - 0.3) < 1e-3
    assert built["sharded"] == ["log_temperature", "projection", "weight"]
    assert (built["bfloat16"], built["fp64"], built["bias"]) == (torch.bfloat16, torch.float64, None)
    assert built["none"] == (0, 2, EXPERTS)
    assert built["same"]


def test_one_dimension_is_refused() -> None:
    from megatron_compete.moe.baselines import check_baseline

    config = layouts.transformer_config(Layout(), num_moe_experts=3, moe_router_topk=2)
    with pytest.raises(CompeteError, match=r"--router-dim 0 with --num-experts 3 .* in 1 dimension: give 2 or more"):
        check_baseline("xmoe", config, BaselineConfig())
    check_baseline("xmoe", config, BaselineConfig(dim=2))
