"""Transformer Engine's modules on a host without CUDA, their one kernel replaced; run as a script by `test_te_path.py`.

Importing Transformer Engine changes what Megatron's modules bind, so this is a process of its own. What is checked is
everything around the grouped GEMM: which modules the specs pick, and how the scoring pass, the dispatcher and the
gradients of all responses call them. The GEMM itself, FP8 and the fused permutation need a device.
"""

import dataclasses
import functools
import os
import sys
import warnings
from typing import Any

import torch
from torch import Tensor

warnings.simplefilter("ignore")
os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


calls: list[tuple[bool, bool]] = []
"""Of each grouped GEMM: whether it has gradients, and whether it casts the weights to FP8 anew."""


def grouped_linear(module: Any, tokens_PH: Tensor, counts_E: list[int], is_first_microbatch: bool | None) -> Tensor:
    """`transformer_engine.pytorch.GroupedLinear.forward` without its kernel; fp32, no bias."""
    assert isinstance(counts_E, list) and len(counts_E) == module.num_gemms, counts_E
    calls.append((torch.is_grad_enabled(), bool(is_first_microbatch)))
    parts = tokens_PH.split(counts_E)
    return torch.cat([part @ getattr(module, f"weight{i}").T for i, part in enumerate(parts)])


def stand_in_for_kernels() -> None:
    """From here on Transformer Engine believes in a device, and computes on the CPU."""
    import transformer_engine.pytorch as te
    from megatron.core.transformer.moe import moe_utils

    torch.cuda.is_available = lambda: True
    te.GroupedLinear.forward = grouped_linear
    te.Fp8Padding.forward = lambda self, rows, counts: (rows, counts)
    te.Fp8Unpadding.forward = lambda self, rows, counts: rows
    moe_utils.te_general_gemm = None  # Megatron then multiplies the router's inputs with torch


def check_specs() -> None:
    """Our spec is Megatron's with the MoE layers exchanged: the same Transformer Engine modules everywhere else."""
    from types import SimpleNamespace

    from megatron.core.transformer.moe.experts import TEGroupedMLP
    from megatron.core.transformer.moe.moe_layer import MoELayer
    from megatron.training.models.gpt import default_layer_spec

    from megatron_compete.config import CompeteConfig
    from megatron_compete.moe.competition import Competition
    from megatron_compete.moe.layer import CompeteMoELayer
    from megatron_compete.moe.specs import compete_layer_spec
    from tests.moe.layouts import Layout, transformer_config

    config = transformer_config(
        Layout(), num_layers=3, moe_layer_freq=[0, 1, 1], moe_grouped_gemm=True, transformer_impl="transformer_engine"
    )
    model = SimpleNamespace(
        transformer=config, restore_modelopt_state=False, use_arbitrary_attention_mask=None, vocab_size=64
    )
    competition = Competition(CompeteConfig(score_kernel="plain"), (2, 3), lambda: 0)
    ours = compete_layer_spec(model, competition=competition).layer_specs
    stock = default_layer_spec(model, None).layer_specs
    for our_layer, stock_layer, is_moe in zip(ours, stock, (False, True, True), strict=True):
        mine, theirs = our_layer.submodules.mlp, stock_layer.submodules.mlp
        if is_moe:
            assert (mine.func, theirs.func) == (CompeteMoELayer, MoELayer)
            assert TEGroupedMLP in (
                theirs.keywords["submodules"].experts,
                _function(theirs.keywords["submodules"].experts),
            )
            keywords = {name: value for name, value in mine.keywords.items() if name != "competition"}
            assert repr(keywords) == repr(theirs.keywords)
        else:
            assert repr(mine) == repr(theirs)
        rest = [
            {f.name: repr(getattr(layer.submodules, f.name)) for f in dataclasses.fields(layer.submodules) if f.name != "mlp"}
            for layer in (our_layer, stock_layer)
        ]  # fmt: skip
        assert rest[0] == rest[1]
        assert "TE" in rest[0]["self_attention"]


def _function(builder: Any) -> Any:
    return builder.func if isinstance(builder, functools.partial) else None


def check_grouped_experts(gradients: str, **overrides: Any) -> None:
    """A competing step with TEGroupedMLP equals the one with SequentialMLP: output and every gradient, fp32.

    `overrides` are Megatron's settings of the first; with fused permutation, which has no stand-in, competing steps
    must do without.
    """
    from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
    from megatron.core.transformer.moe.moe_utils import get_default_pg_collection

    from megatron_compete.config import CompeteConfig
    from megatron_compete.moe.layer import CompeteMoELayer
    from tests.moe import layouts
    from tests.moe.layouts import BATCH, EXPERTS, FFN, HIDDEN, SEQUENCE, Layout
    from tests.moe.reference import Weights

    config = CompeteConfig(
        rate=1.0, max_active_layers=1, distill_coeff=0.7, diversity_coeff=0.5, response_balance_coeff=0.3,
        response_gradients=gradients, score_chunk_tokens=5, score_kernel="plain",
    )  # fmt: skip
    sequential = layouts.build_layer(Layout(), Weights.random(EXPERTS, HIDDEN, FFN), config)
    transformer = layouts.transformer_config(
        Layout(), moe_grouped_gemm=True, transformer_impl="transformer_engine", **overrides
    )
    spec = get_moe_module_spec(use_te=True, num_experts=EXPERTS, moe_grouped_gemm=True)
    grouped = CompeteMoELayer(
        transformer, spec.keywords["submodules"], pg_collection=get_default_pg_collection(),
        competition=sequential.competition,
    )  # fmt: skip
    assert type(grouped.experts).__name__ == "TEGroupedMLP"
    grouped.set_layer_number(1)
    pairs = {"router": (sequential.router.weight, grouped.router.weight)}
    for index, expert in enumerate(sequential.experts.local_experts):
        for name in ("linear_fc1", "linear_fc2"):
            of_group = getattr(getattr(grouped.experts, name), f"weight{index}")
            pairs[f"{name}{index}"] = (getattr(expert, name).weight, of_group)
    for one, other in pairs.values():
        other.data.copy_(one.data)
    tokens = torch.randn(SEQUENCE, BATCH, HIDDEN, generator=torch.Generator().manual_seed(3))
    found = []
    for layer in (sequential, grouped.train()):
        inputs = tokens.clone().requires_grad_()
        output = layer(inputs)[0]
        output.square().sum().backward()
        found.append((output.detach(), inputs.grad))
    for one, other in [*zip(*found), *((one.grad, other.grad) for one, other in pairs.values())]:
        assert (one - other).abs().max() <= 1e-5 * one.abs().max() > 0


def check_weights_are_cast_by_the_winners_pass() -> None:
    """With FP8 the first pass with gradients casts the weights, though a scoring pass came before it."""
    from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
    from megatron.core.transformer.moe.moe_utils import get_default_pg_collection

    from megatron_compete.config import CompeteConfig
    from megatron_compete.moe.competition import Competition
    from megatron_compete.moe.layer import CompeteMoELayer
    from tests.moe import layouts
    from tests.moe.layouts import BATCH, EXPERTS, HIDDEN, SEQUENCE, Layout

    transformer = layouts.transformer_config(
        Layout(), moe_grouped_gemm=True, transformer_impl="transformer_engine", fp8="hybrid"
    )
    spec = get_moe_module_spec(use_te=True, num_experts=EXPERTS, moe_grouped_gemm=True)
    layer = CompeteMoELayer(
        transformer, spec.keywords["submodules"], pg_collection=get_default_pg_collection(),
        competition=Competition(CompeteConfig(rate=1.0, max_active_layers=1, score_kernel="plain"), (1,), current_step=lambda: 0),
    )  # fmt: skip
    layer.set_layer_number(1)
    layer.train()
    tokens = torch.randn(SEQUENCE, BATCH, HIDDEN)
    for first in (True, False):
        calls.clear()
        layer(tokens)
        assert [cast for has_gradient, cast in calls if has_gradient] == [first, first]
        assert any(not has_gradient for has_gradient, _ in calls)
    layer.set_is_first_microbatch()
    calls.clear()
    layer(tokens)
    assert [cast for has_gradient, cast in calls if has_gradient] == [True, True]


def check_scoring_leaves_the_state_of_fp8(recipe: str) -> None:
    """Transformer Engine's own bookkeeping, kernels apart: a pass outside FP8 within a step in FP8 loses nothing."""
    import transformer_engine.pytorch.quantization as quantization
    from megatron.core.fp8_utils import get_fp8_context
    from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
    from megatron.core.transformer.moe.moe_utils import get_default_pg_collection

    from megatron_compete.moe.fp8 import without_fp8
    from tests.moe import layouts
    from tests.moe.layouts import EXPERTS, Layout

    quantization.get_device_compute_capability = lambda: (9, 0)
    for check in (quantization.check_fp8_support, quantization.check_fp8_block_scaling_support, quantization.check_mxfp8_support):  # fmt: skip
        check.cache_clear()
    config = layouts.transformer_config(
        Layout(), moe_grouped_gemm=True, transformer_impl="transformer_engine", fp8="hybrid", fp8_recipe=recipe
    )
    spec = get_moe_module_spec(use_te=True, num_experts=EXPERTS, moe_grouped_gemm=True)
    experts = spec.keywords["submodules"].experts(EXPERTS, config, pg_collection=get_default_pg_collection())
    linear = experts.linear_fc1

    def passes() -> bool:
        """What a module asks at the start of a pass; whether it runs in FP8."""
        linear.init_fp8_metadata(num_gemms=EXPERTS)
        return linear.fp8

    with get_fp8_context(config):
        assert passes()
        scales, quantizers = linear.fp8_meta["scaling_fwd"], linear.quantizers["scaling_fwd"]
        linear._fp8_workspaces["weight0"] = "cast in this step"
        with without_fp8(config, experts):
            assert not passes()
        assert linear.fp8 and linear.fp8_initialized and linear.fp8_meta["fp8_checkpoint"]
        assert passes()
        assert linear.fp8_meta["scaling_fwd"] is scales and linear.quantizers["scaling_fwd"] is quantizers
        assert linear._fp8_workspaces == {"weight0": "cast in this step"}
    with without_fp8(config, experts):  # by utility, in the backward pass
        assert not passes()
    assert linear.fp8 and linear.fp8_meta["fp8_checkpoint"]
    assert quantization.FP8GlobalStateManager.AUTOCAST_DEPTH == 0


def main() -> None:
    from megatron_compete.launch import cpu_backend as cpu
    from tests.moe.layouts import Layout, initialize

    cpu.activate()
    initialize(Layout())
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    model_parallel_cuda_manual_seed(1)
    check_specs()
    stand_in_for_kernels()
    for gradients in ("winners", "all"):
        check_grouped_experts(gradients)
    check_grouped_experts("winners", recompute_granularity="selective", recompute_modules=["moe_act"])
    check_grouped_experts("winners", moe_permute_fusion=True)
    check_weights_are_cast_by_the_winners_pass()
    for recipe in ("delayed", "tensorwise", "blockwise"):
        check_scoring_leaves_the_state_of_fp8(recipe)
    print("all checks passed")
    sys.stdout.flush()
    os._exit(0)  # Transformer Engine's and torch's exit handlers would ask for the device


if __name__ == "__main__":
    main()
