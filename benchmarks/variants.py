"""What is compared: one MoE layer at a normal step, at one that competes, by responses or by utility, and at a naive one."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.moe_utils import get_default_pg_collection
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.naive import NaiveCompeteLayer, NaiveUtilityLayer
from megatron_compete.common.comparison import check_finite, relative_difference
from megatron_compete.config import CompeteConfig
from megatron_compete.moe.competition import Competition
from megatron_compete.moe.layer import CompeteMoELayer

TOLERANCE = 1e-4
"""Largest difference between a competing step and its naive form, in fp32, as a share of the largest value."""

TIES = 1e-3
"""Share of tokens that may differ: there the K-th and the next response are equal within rounding."""

BY_UTILITY = CompeteConfig(rate=1.0, max_active_layers=1, kind="utility", router_balance_coeff=0.0)
"""Without the router's own balance, which the normal step it is compared with has not either."""

NAIVE_UTILITY = "naive utility"


@dataclass
class Batch:
    """Tokens [T, 1, H] and the gradient that arrives for the output."""

    tokens: Tensor
    cotangent: Tensor


def device() -> torch.device:
    """Where this rank computes."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def transformer_config(case: Case, dtype: torch.dtype, grouped_gemm: bool, **overrides: Any) -> TransformerConfig:
    """Megatron's configuration of one layer of the case, without a balance loss of Megatron's but by `overrides`."""
    gated = case.activation == "swiglu"
    settings: dict[str, Any] = dict(
        num_layers=1, hidden_size=case.hidden, num_attention_heads=1, ffn_hidden_size=case.ffn,
        moe_ffn_hidden_size=case.ffn, num_moe_experts=case.experts, moe_router_topk=case.topk,
        moe_router_load_balancing_type="none", moe_aux_loss_coeff=0.0, moe_token_dispatcher_type="alltoall",
        moe_grouped_gemm=grouped_gemm, add_bias_linear=False, gated_linear_unit=gated,
        activation_func=F.silu if gated else F.relu, bias_activation_fusion=False, gradient_accumulation_fusion=False,
        use_cpu_initialization=not torch.cuda.is_available(), perform_initialization=False,
        expert_model_parallel_size=case.ep, bf16=dtype == torch.bfloat16, params_dtype=dtype,
        moe_router_dtype="fp32",
    )  # fmt: skip
    return TransformerConfig(**(settings | overrides))


def build_variants(
    case: Case,
    dtype: torch.dtype,
    grouped_gemm: bool = False,
    compete: CompeteConfig | None = None,
    to_check: bool = False,
) -> dict[str, MoELayer]:
    """The layers with the same weights, and gradient buffers in place.

    Args:
        grouped_gemm: Transformer Engine's grouped experts in place of one MLP after the other.
        compete: settings of the steps that compete by responses; the authors' by default. By utility as large a sample
            of the tokens competes.
        to_check: with the naive form of the step by utility, which is not measured.
    """
    config, groups = transformer_config(case, dtype, grouped_gemm), get_default_pg_collection()
    spec = get_moe_module_spec(use_te=grouped_gemm, num_experts=case.experts, moe_grouped_gemm=grouped_gemm)
    submodules = spec.keywords["submodules"]
    compete = compete or CompeteConfig(rate=1.0, max_active_layers=1)

    def ours(settings: CompeteConfig) -> MoELayer:
        competition = Competition(settings, (1,), current_step=lambda: 0)
        return CompeteMoELayer(config, submodules, pg_collection=groups, competition=competition)

    layers = {
        "normal": ours(CompeteConfig(rate=0.0)),
        "competing": ours(compete),
        "utility": ours(dataclasses.replace(BY_UTILITY, token_fraction=compete.token_fraction)),
        "naive": NaiveCompeteLayer(config, submodules, groups, compete),
    }
    if to_check:
        layers[NAIVE_UTILITY] = NaiveUtilityLayer(config, submodules, groups, compete)
    _spread_weights(layers["competing"])
    for layer in layers.values():
        layer.load_state_dict(layers["competing"].state_dict())
        _place(layer)
    return layers


def _spread_weights(layer: MoELayer) -> None:
    """Weights that keep the scale of their input, so that responses differ well beyond rounding.

    The router is the same on all ranks, the experts are not.
    """
    with torch.no_grad():
        for part, seed in ((layer.router, 0), (layer.experts, 1 + torch.distributed.get_rank())):
            random = torch.Generator(device()).manual_seed(seed)
            for weight in part.parameters():
                drawn = torch.randn(weight.shape, generator=random, device=device())
                weight.copy_(drawn / weight.shape[-1] ** 0.5)


def _place(layer: MoELayer) -> None:
    """On the device, ready to train; gradients exist, as under Megatron's data parallelism, and cost no step memory."""
    layer.set_layer_number(1)
    layer.to(device()).train()
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)


def make_batch(case: Case, dtype: torch.dtype, seed: int = 0) -> Batch:
    """This rank's tokens, of unit scale."""
    random = torch.Generator().manual_seed(100 + torch.distributed.get_rank() + 1000 * seed)
    tokens, cotangent = torch.randn(2, case.tokens, 1, case.hidden, generator=random).to(device(), dtype)
    return Batch(tokens.requires_grad_(), cotangent)


def run_step(layer: MoELayer, batch: Batch) -> Tensor:
    """Forward and backward pass; returns the output."""
    output, _ = layer(batch.tokens)
    output.backward(batch.cotangent)
    return output.detach()


def check_equal(layers: dict[str, MoELayer], batch: Batch) -> None:
    """Compare each competing step with its naive form; a benchmark of a wrong thing is worthless.

    Args:
        layers: of `build_variants`, `to_check`.
    Raises:
        AssertionError: they differ in more tokens than can be ties, or, by utility, in the router's gradient.
    """
    _compare(layers, batch, "competing", "naive")
    _compare(layers, batch, "utility", NAIVE_UTILITY)
    ours, naive = (layers[name].router.weight.grad for name in ("utility", NAIVE_UTILITY))
    apart = relative_difference(ours, naive, "the router's gradient")
    assert apart <= TOLERANCE, f"the router's gradient differs by {apart:.1e} between utility and {NAIVE_UTILITY}"


def _compare(layers: dict[str, MoELayer], batch: Batch, *names: str) -> None:
    """Output and input gradient of two layers, token by token."""
    found: list[tuple[Tensor, Tensor]] = []
    for name in names:
        batch.tokens.grad = None
        layers[name].router.weight.grad.zero_()
        output = run_step(layers[name], batch)
        assert batch.tokens.grad is not None
        found.append((output, batch.tokens.grad))
    batch.tokens.grad = None
    for what, ours, naive in zip(("output", "input gradient"), *found):
        for values in (ours, naive):
            check_finite(values, what)
        same_T = (ours - naive).abs().amax(dim=(1, 2)) <= TOLERANCE * naive.abs().max()
        share = 1 - same_T.float().mean().item()
        assert share <= TIES, f"{what} of {' and '.join(names)} differs in {share:.1%} of the tokens"
