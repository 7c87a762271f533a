"""Experts on random tokens by the kernels, and by Megatron's operations one after the other.

T tokens, E experts, F their width, H hidden size. Functions here run in a process whose Triton interprets (`tests.ranks`),
or on a GPU.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_compete.routing.responses import l2_response, softplus_response


@dataclass(frozen=True)
class Case:
    """Experts and tokens. By default nothing is a multiple of the tiles."""

    hidden: int = 72
    ffn: int = 40
    activation: str = "silu"
    gated: bool = True
    response: str = "softplus"
    dtype: torch.dtype = torch.bfloat16
    tokens: int = 40
    experts: int = 2
    round_gate: bool = True
    wide: bool = False
    small_tiles: bool = True
    """Tiles so small that there are several of everything."""
    scale: float = 1.0
    """Standard deviation of the tokens."""

    def __str__(self) -> str:
        kind = ("wide" if self.wide else "narrow") + ("-gated" if self.gated else "")
        dtype = str(self.dtype).removeprefix("torch.")
        sizes = f"T{self.tokens}-H{self.hidden}-F{self.ffn}-E{self.experts}"
        return f"{kind}-{self.activation}-{self.response}-{dtype}-{sizes}"

    def form(self) -> Any:
        from megatron_compete.moe.kernels.coverage import ExpertForm

        return ExpertForm(self.hidden, self.ffn, self.activation, self.gated, self.round_gate)

    def tiles(self) -> Any:
        """Small ones, or those in use for this kind."""
        from megatron_compete.moe.kernels.scorer import default_tiles
        from megatron_compete.moe.kernels.tiles import GemmTiles, NarrowTiles, WideTiles, for_projection, wide_tiles

        if not self.small_tiles and self.wide:
            sizes = wide_tiles(self.gated, fp8=False)
            return for_projection(sizes, fp8=False) if self.response == "projection" else sizes
        if not self.small_tiles:
            return default_tiles(self.form(), fp8=False, response=self.response)
        if self.wide:
            return WideTiles(GemmTiles(32, 16, 32, group=2), GemmTiles(32, 32, 32, group=2))
        return NarrowTiles(tokens=32, k=32, columns=32, group=2)


@dataclass(frozen=True)
class Inputs:
    tokens_TH: Tensor
    fc1: list[Tensor]
    fc2: list[Tensor]
    vectors_TH: Tensor | None

    @classmethod
    def random(cls, case: Case, device: str = "cpu") -> "Inputs":
        """Outputs of unit scale where the tokens are; the experts differ by chance alone."""
        random = torch.Generator(device).manual_seed(5)  # on the GPU itself: Mixtral's experts take a CPU half a minute

        def draw(*shape: int, scale: float) -> Tensor:
            return (torch.randn(*shape, generator=random, device=device) * scale).to(case.dtype)

        rows = case.form().fc1_rows
        return cls(
            draw(case.tokens, case.hidden, scale=case.scale),
            [draw(rows, case.hidden, scale=1.5 * case.hidden**-0.5) for _ in range(case.experts)],
            [draw(case.hidden, case.ffn, scale=1.5 * case.ffn**-0.5) for _ in range(case.experts)],
            draw(case.tokens, case.hidden, scale=1.0) if case.response == "projection" else None,
        )


def fused(case: Case, inputs: Inputs, fp8: bool = False, tiles: Any = None) -> Tensor:
    """Responses [T, E] by the kernels."""
    from megatron_compete.moe.kernels.scorer import fused_responses, quantized
    from megatron_compete.moe.kernels.weights import ExpertWeights, address_table

    weights = ExpertWeights(case.form(), case.dtype, address_table(inputs.fc1), address_table(inputs.fc2))
    weights = quantized(weights) if fp8 else weights
    return fused_responses(inputs.tokens_TH, weights, case.response, inputs.vectors_TH, tiles or case.tiles())


def plain(case: Case, inputs: Inputs) -> Tensor:
    """Responses [T, E] by torch and Megatron's activation functions, in the case's precision."""
    outputs = (plain_output(case, inputs.tokens_TH, *weights) for weights in zip(inputs.fc1, inputs.fc2))
    return torch.stack([reduce_plainly(case, output, inputs.vectors_TH) for output in outputs], dim=-1)


def plain_output(case: Case, tokens_TH: Tensor, fc1: Tensor, fc2: Tensor) -> Tensor:
    """Raw output of one expert [T, H], rounded where Megatron's modules round."""
    function = activation_function(case.activation)
    hidden = matmul(tokens_TH, fc1)
    if not case.gated:
        return matmul(function(hidden), fc2)
    gate, up = hidden.chunk(2, dim=-1)
    if case.round_gate:
        return matmul(function(gate) * up, fc2)
    return matmul((function(gate.float()) * up.float()).to(hidden.dtype), fc2)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b.T with fp32 sums, rounded once; a CPU's half precision GEMM may round in between."""
    return (a.float() @ b.float().T).to(a.dtype) if not a.is_cuda else a @ b.T


def reduce_plainly(case: Case, output: Tensor, vectors_TH: Tensor | None) -> Tensor:
    if case.response == "projection":
        assert vectors_TH is not None
        return (output.float() * vectors_TH.float()).sum(-1)
    return {"softplus": softplus_response, "l2": l2_response}[case.response](output)


def activation_function(name: str) -> Any:
    from megatron.core.activations import fast_gelu, quick_gelu, squared_relu

    functions = {"silu": F.silu, "relu": F.relu, "gelu": F.gelu, "squared_relu": squared_relu}
    return {**functions, "gelu_tanh": fast_gelu, "quick_gelu": quick_gelu}[name]


def both(case: Case, device: str, fp8: bool = False) -> tuple[Tensor, Tensor]:
    """Responses by the kernels and plainly."""
    if device == "cpu":
        from tests.moe.kernels.interpreter import repair

        repair()
    else:  # the reference is rounded once, as on a CPU; by default cuBLAS may add parts of a long sum in bf16
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    inputs = Inputs.random(case, device)
    return fused(case, inputs, fp8).cpu(), plain(case, inputs).cpu()


def all_both(cases: list[Case], device: str) -> list[tuple[Tensor, Tensor]]:
    return [both(case, device) for case in cases]


def check(case: Case, by_kernels: Tensor, by_modules: Tensor) -> None:
    """Within rounding of each other: fp32 sums in another order, and what that flips in the precision's rounding."""
    assert by_kernels.shape == (case.tokens, case.experts) and by_kernels.dtype == torch.float32
    one_step = torch.finfo(case.dtype).eps
    typical = max(1.0, float(by_modules.abs().mean())) if by_modules.numel() else 1.0
    tolerance = 4e-6 if case.dtype == torch.float32 else one_step / 2
    torch.testing.assert_close(by_kernels, by_modules, rtol=0, atol=tolerance * typical)


def same_winners(by_kernels: Tensor, by_modules: Tensor, k: int) -> float:
    """Share of tokens whose K strongest experts are the same."""
    chosen = (scores.topk(k).indices.sort().values for scores in (by_kernels, by_modules))
    first, second = chosen
    return float((first == second).all(-1).float().mean())


def every_kind(case: Case) -> list[Case]:
    """The case by narrow and by wide kernels."""
    return [case, replace(case, wide=True)]
