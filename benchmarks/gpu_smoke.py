#!/usr/bin/env python3
"""Whether each thing that the GPU suite builds on works on this host: one line each, in a minute.

    python benchmarks/gpu_smoke.py

From the driver upwards: a product, NCCL, a compiled function, Transformer Engine's modules in bf16 and in each FP8
recipe, its optimizer and attention, the scoring kernels, a competing layer. What fails prints its traceback and does not
stop the rest; the exit code is 1 then. Numbers are compared with torch's, so that `ok` is more than "did not raise".
"""

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.ranks import be_the_only_rank
from megatron_compete.common.comparison import largest_difference
from megatron_compete.common.errors import CompeteError, run_command

TOKENS, HIDDEN, FFN = 512, 256, 128
FP8_RECIPES = {"delayed": "DelayedScaling", "tensorwise": "Float8CurrentScaling", "blockwise": "Float8BlockScaling"}
"""Megatron's name of a recipe -> Transformer Engine's (megatron/core/fp8_utils.py: `get_fp8_recipe`)."""
IN_BF16, IN_FP8 = 2.0**-6, 2.0**-3
"""Norm of the error allowed over the norm of the result."""


def draw(*size: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    random = torch.Generator("cuda").manual_seed(seed)
    return (scale * torch.randn(size, generator=random, device="cuda")).bfloat16()


def compare(found: Tensor, expected: Tensor, allowed: float) -> None:
    """Raise an AssertionError where `found` is further from `expected` than rounding explains."""
    error = ((found.float() - expected.float()).norm() / expected.float().norm()).item()
    assert error <= allowed, f"off by {error:.3g} of the norm, {allowed:.3g} allowed"  # NaN is not within either


def check_product() -> None:
    a, b = draw(HIDDEN, HIDDEN), draw(HIDDEN, HIDDEN, seed=1)
    compare(a @ b, (a.cpu().float() @ b.cpu().float()).cuda(), IN_BF16)


def check_nccl() -> None:
    be_the_only_rank()
    torch.cuda.set_device(0)
    torch.distributed.init_process_group("nccl")
    ones = torch.ones(8, device="cuda")
    torch.distributed.all_reduce(ones)
    torch.distributed.new_group(backend="gloo")  # Megatron's trainer makes some
    assert ones.sum().item() == 8


def check_compiler() -> None:
    """Inductor, with which Megatron compiles its small fused functions, needs a C compiler."""
    compiled = torch.compile(lambda x: F.silu(x) * 2 + x)
    x = draw(TOKENS, HIDDEN).requires_grad_()
    compiled(x).sum().backward()
    compare(compiled(x), F.silu(x) * 2 + x, IN_BF16)


def fp8(recipe: str) -> Any:
    """The context of a pass in FP8, in Megatron's hybrid format; of bf16 without a recipe."""
    import transformer_engine.pytorch as te
    from transformer_engine.common import recipe as recipes

    if recipe == "bf16":
        return te.autocast(enabled=False)
    return te.autocast(recipe=getattr(recipes, FP8_RECIPES[recipe])(fp8_format=recipes.Format.HYBRID))


def check_linear(recipe: str) -> None:
    import transformer_engine.pytorch as te

    linear = te.Linear(HIDDEN, FFN, bias=False, params_dtype=torch.bfloat16)
    x = draw(TOKENS, HIDDEN).requires_grad_()
    allowed = IN_BF16 if recipe == "bf16" else IN_FP8
    for _ in range(3):  # delayed scaling finds its scales in the passes before
        x.grad = None
        with fp8(recipe):
            output = linear(x)
        output.backward(torch.ones_like(output))
    assert x.grad is not None
    compare(output, x @ linear.weight.T, allowed)
    compare(x.grad, torch.ones_like(output) @ linear.weight, allowed)


def check_grouped_linear(recipe: str) -> None:
    """With an expert that no token goes to, as happens in every run."""
    import transformer_engine.pytorch as te

    linear = te.GroupedLinear(4, HIDDEN, FFN, bias=False, params_dtype=torch.bfloat16)
    counts = [128, 0, 256, 128]
    x = draw(sum(counts), HIDDEN).requires_grad_()
    weights = [getattr(linear, f"weight{index}") for index in range(4)]
    allowed = IN_BF16 if recipe == "bf16" else IN_FP8
    for _ in range(3):
        linear.zero_grad()
        with fp8(recipe):
            output = linear(x, counts)
        output.backward(torch.ones_like(output))
    compare(output, torch.cat([part @ weight.T for part, weight in zip(x.split(counts), weights)]), allowed)
    assert weights[1].grad is None or not weights[1].grad.any(), "an expert without tokens has a gradient"
    compare(weights[2].grad, torch.ones(FFN, 256, device="cuda") @ x.split(counts)[2].float(), allowed)


def check_padding() -> None:
    """Megatron pads every expert's tokens in FP8."""
    import transformer_engine.pytorch as te

    counts, x = [3, 0, 21], draw(24, HIDDEN)
    with fp8("tensorwise"):
        padded, padded_counts = te.Fp8Padding(3)(x, counts)
        back = te.Fp8Unpadding(3)(padded, counts)
    assert padded_counts == [16, 0, 32], padded_counts
    assert torch.equal(back, x)


def check_attention() -> None:
    import transformer_engine.pytorch as te

    attention = te.DotProductAttention(4, 64, attention_dropout=0.0, attn_mask_type="causal", qkv_format="sbhd")
    q, k, v = (draw(128, 2, 4, 64, seed=seed).requires_grad_() for seed in range(3))
    output = attention(q, k, v)
    output.sum().backward()
    by_head = (x.permute(1, 2, 0, 3) for x in (q, k, v))
    expected = F.scaled_dot_product_attention(*by_head, is_causal=True).permute(2, 0, 1, 3).flatten(2)
    compare(output, expected, IN_BF16)
    assert q.grad is not None and q.grad.isfinite().all()


def check_norms() -> None:
    import transformer_engine.pytorch as te

    x = draw(TOKENS, HIDDEN)
    compare(te.LayerNorm(HIDDEN, params_dtype=torch.bfloat16)(x), F.layer_norm(x, (HIDDEN,)), IN_BF16)
    compare(te.RMSNorm(HIDDEN, params_dtype=torch.bfloat16)(x), F.rms_norm(x, (HIDDEN,)), IN_BF16)


def check_optimizer() -> None:
    from transformer_engine.pytorch.optimizers import FusedAdam, multi_tensor_applier, multi_tensor_l2norm

    parameters = [torch.ones(100, device="cuda", requires_grad=True), torch.ones(7, device="cuda", requires_grad=True)]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 2.0)
    grads = [parameter.grad for parameter in parameters]
    flag = torch.zeros(1, dtype=torch.int, device="cuda")
    norm, _ = multi_tensor_applier(multi_tensor_l2norm, flag, [grads], False)
    compare(norm, torch.cat(grads).norm().view(1), 1e-5)  # type: ignore[arg-type]
    FusedAdam(parameters, lr=0.1).step()
    compare(parameters[0], torch.full_like(parameters[0], 0.9), 1e-4)


def check_scoring(wide: bool, quantise: bool) -> None:
    from megatron_compete.moe.kernels.coverage import ExpertForm
    from megatron_compete.moe.kernels.scorer import fused_responses, quantized
    from megatron_compete.moe.kernels.weights import ExpertWeights, address_table
    from megatron_compete.routing.responses import softplus_response

    ffn, experts = (512 if wide else FFN), 4
    tokens = draw(TOKENS + 3, HIDDEN)
    fc1 = [draw(2 * ffn, HIDDEN, scale=HIDDEN**-0.5, seed=seed) for seed in range(experts)]
    fc2 = [draw(HIDDEN, ffn, scale=ffn**-0.5, seed=9 + seed) for seed in range(experts)]
    weights = ExpertWeights(
        ExpertForm(HIDDEN, ffn, "silu", gated=True), torch.bfloat16, address_table(fc1), address_table(fc2)
    )
    found = fused_responses(tokens, quantized(weights) if quantise else weights, "softplus")
    expected = []
    for first, second in zip(fc1, fc2):
        gate, up = (tokens @ first.T).chunk(2, dim=-1)
        expected.append(softplus_response((F.silu(gate) * up) @ second.T))
    largest = largest_difference(found, torch.stack(expected, dim=-1), "scores")
    assert largest <= (1e-2 if quantise else 4e-3), f"a score is off by {largest:.3g}"


def check_layer(grouped: bool) -> None:
    """A competing step, forward and backward, equals the naive one."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    from benchmarks.cases import Case
    from benchmarks.variants import build_variants, check_equal, make_batch, run_step

    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel()
        model_parallel_cuda_manual_seed(1)
    case = Case(tokens=TOKENS, hidden=HIDDEN, ffn=FFN, experts=8, topk=2, ep=1)
    check_equal(build_variants(case, torch.float32, grouped), make_batch(case, torch.float32))
    layers = build_variants(case, torch.bfloat16, grouped)
    for name, layer in layers.items():
        assert run_step(layer, make_batch(case, torch.bfloat16)).isfinite().all(), name


CHECKS: dict[str, Callable[[], None]] = {
    "product": check_product,
    "NCCL and gloo, one rank": check_nccl,
    "torch.compile": check_compiler,
    **{f"Transformer Engine: Linear, {name}": lambda name=name: check_linear(name) for name in ("bf16", *FP8_RECIPES)},
    **{f"Transformer Engine: GroupedLinear, {name}": lambda name=name: check_grouped_linear(name) for name in ("bf16", *FP8_RECIPES)},
    "Transformer Engine: padding for FP8": check_padding,
    "Transformer Engine: attention": check_attention,
    "Transformer Engine: norms": check_norms,
    "Transformer Engine: FusedAdam, norm of gradients": check_optimizer,
    "scoring kernel, narrow experts": lambda: check_scoring(wide=False, quantise=False),
    "scoring kernel, narrow experts, FP8": lambda: check_scoring(wide=False, quantise=True),
    "scoring kernels, wide experts": lambda: check_scoring(wide=True, quantise=False),
    "scoring kernels, wide experts, FP8": lambda: check_scoring(wide=True, quantise=True),
    "competing layer, one expert after the other": lambda: check_layer(grouped=False),
    "competing layer, grouped experts": lambda: check_layer(grouped=True),
}  # fmt: skip
"""In this order: what comes later uses what comes before."""


def run_checks(checks: dict[str, Callable[[], None]]) -> list[str]:
    """Run all; the names of those that failed."""
    failed = []
    for name, check in checks.items():
        start = time.monotonic()
        try:
            check()
            torch.cuda.synchronize()
            outcome = "ok"
        except Exception as error:  # each failure is worth reading, and time on a GPU is short
            traceback.print_exc()
            outcome = f"FAILED  {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            failed.append(name)
        print(f"{name:50s} {time.monotonic() - start:6.1f} s  {outcome}", flush=True)
    return failed


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    if not torch.cuda.is_available():
        raise CompeteError("benchmarks/gpu_smoke.py needs a CUDA device, and torch sees none")
    failed = run_checks(CHECKS)
    print(f"{len(CHECKS) - len(failed)} of {len(CHECKS)} work" + (f"; not: {', '.join(failed)}" if failed else ""))
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    run_command(main)
