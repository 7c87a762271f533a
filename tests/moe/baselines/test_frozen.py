"""A frozen router: Megatron's layer to the bit, but for the router's gradient."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_compete.common.errors import CompeteError
from megatron_compete.moe.baselines import check_baseline
from megatron_compete.moe.baselines.config import BaselineConfig
from tests.moe import layouts
from tests.moe.baselines.layers import build_baseline
from tests.moe.layouts import BATCH, EXPERTS, FFN, HIDDEN, SEQUENCE, Layout, transformer_config
from tests.moe.reference import Weights
from tests.ranks import run_rank

TOKENS, COTANGENTS = torch.randn(2, SEQUENCE, BATCH, HIDDEN, generator=torch.Generator().manual_seed(3))


def stock_layer(**overrides: Any) -> Any:
    from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
    from megatron.core.transformer.moe.moe_utils import get_default_pg_collection

    spec = get_moe_module_spec(use_te=False, num_experts=EXPERTS, moe_grouped_gemm=False)
    layer = spec(transformer_config(Layout(), **overrides), pg_collection=get_default_pg_collection())
    layer.set_layer_number(1)
    layouts.load(layer, Weights.random(EXPERTS, HIDDEN, FFN))
    return layer.train()


def passes() -> list[tuple[Tensor, Tensor, dict[str, Tensor | None]]]:
    """Output, token gradient and gradients of Megatron's layer and of the frozen one."""
    layouts.initialize(Layout())
    frozen = build_baseline(Layout(), "frozen", BaselineConfig(), Weights.random(EXPERTS, HIDDEN, FFN))
    results = []
    for layer in (stock_layer(), frozen):
        tokens = TOKENS.clone().requires_grad_()
        output, _ = layer(tokens)
        (output * COTANGENTS).sum().backward()
        results.append((output.detach(), tokens.grad, {name: p.grad for name, p in layer.named_parameters()}))
    return results


def test_only_the_routers_gradient_is_missing() -> None:
    (output, token_grad, grads), (same_output, same_token_grad, frozen_grads) = run_rank(passes)
    assert torch.equal(output, same_output) and torch.equal(token_grad, same_token_grad)
    assert grads.keys() == frozen_grads.keys()
    for name, grad in grads.items():
        assert grad is not None and grad.any()
        if name.startswith("router."):
            assert frozen_grads[name] is None
        else:
            assert torch.equal(grad, frozen_grads[name])


def trainable_names() -> list[tuple[str, bool]]:
    layouts.initialize(Layout())
    router = build_baseline(Layout(), "frozen", BaselineConfig(), add_bias_linear=True).router
    return [(name, parameter.requires_grad) for name, parameter in router.named_parameters()]


def test_its_bias_stays_too() -> None:
    assert run_rank(trainable_names) == [("weight", False), ("bias", False)]


@pytest.mark.parametrize(
    ("flag", "settings"),
    [
        ("--moe-z-loss-coeff", dict(moe_z_loss_coeff=0.1)),
        ("--moe-router-enable-expert-bias", dict(moe_router_enable_expert_bias=True)),
        ("--moe-aux-loss-coeff 0.01", dict(moe_router_load_balancing_type="aux_loss", moe_aux_loss_coeff=0.01)),
        (
            "--moe-aux-loss-coeff 0.01",
            dict(moe_router_load_balancing_type=["none", "seq_aux_loss"], moe_aux_loss_coeff=[0.0, 0.01]),
        ),
        ("--moe-router-load-balancing-type sinkhorn", dict(moe_router_load_balancing_type="sinkhorn")),
    ],
)
def test_what_would_train_the_hidden_states_alone_is_refused(flag: str, settings: dict[str, Any]) -> None:
    config = transformer_config(Layout())
    check_baseline("frozen", config, BaselineConfig())
    changed = SimpleNamespace(**(vars(config) | settings))
    with pytest.raises(CompeteError, match=rf"{flag} .*--router frozen"):
        check_baseline("frozen", changed, BaselineConfig())  # type: ignore[arg-type]


def test_the_way_out_of_the_balance_loss_is_named_and_taken() -> None:
    config = transformer_config(Layout(), moe_router_load_balancing_type="aux_loss", moe_aux_loss_coeff=0.01)
    with pytest.raises(CompeteError, match=r"give --moe-aux-loss-coeff 0\.0"):
        check_baseline("frozen", config, BaselineConfig())
    check_baseline("frozen", transformer_config(Layout(), moe_router_load_balancing_type="aux_loss"), BaselineConfig())
