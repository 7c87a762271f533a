"""Wide experts: fc1 and activation to a bounded scratch of the hidden layer, then fc2 with a reducing epilogue.

G tokens of a block, F width of the experts, H hidden size. fc2's kernel writes one fp32 number per token and tile of H;
they are added in the order of the tiles, so that results do not depend on who is first.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from megatron_compete.moe.kernels.coverage import ExpertForm
from megatron_compete.moe.kernels.quantize import quantize_rows
from megatron_compete.moe.kernels.tile_math import (
    fc1_tile,
    product,
    rounded,
    tile_of_program,
    tile_response,
)
from megatron_compete.moe.kernels.tiles import GemmTiles, WideTiles
from megatron_compete.moe.kernels.weights import ExpertWeights, triton_dtype

SCRATCH_BYTES = 256 * 2**20
"""Bound of the hidden layer's scratch; enough tiles of any shape to fill a GPU many times over."""


@triton.jit(do_not_specialize=["num_tokens", "first_expert"])
def fc1_kernel(
    tokens, fc1_table, token_scales, fc1_scales, hidden, num_tokens, first_expert,
    HIDDEN: tl.constexpr, FFN: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr, ROUND_GATE: tl.constexpr,
    PRECISION: tl.constexpr, OPERAND: tl.constexpr, FP8: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, STAGES: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """hidden[e, t, f] of the experts from `first_expert` on; grid: (tiles of T and F, experts)."""
    num_tiles = tl.cdiv(FFN, BLOCK_N)
    tile, part = tile_of_program(tl.program_id(0), tl.cdiv(num_tokens, BLOCK_T), num_tiles, GROUP)
    expert = first_expert + tl.program_id(1)
    rows = tile * BLOCK_T + tl.arange(0, BLOCK_T)
    row = tl.minimum(rows, num_tokens - 1).to(tl.int64)
    channels = part * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = tl.minimum(channels, FFN - 1)
    values = fc1_tile(
        tokens, fc1_table, token_scales, fc1_scales, expert, row, channel, HIDDEN, FFN, ACTIVATION, GATED, ROUND_GATE,
        PRECISION, OPERAND, FP8, BLOCK_T, BLOCK_N, BLOCK_K, STAGES,
    )  # fmt: skip
    target = (
        hidden + (tl.program_id(1).to(tl.int64) * num_tokens + rows.to(tl.int64))[:, None] * FFN + channels[None, :]
    )
    tl.store(target, values.to(PRECISION), mask=(rows[:, None] < num_tokens) & (channels[None, :] < FFN))


@triton.jit(do_not_specialize=["num_tokens", "first_expert"])
def fc2_kernel(
    hidden, fc2_table, hidden_scales, fc2_scales, vectors, partial, num_tokens, first_expert,
    HIDDEN: tl.constexpr, FFN: tl.constexpr, RESPONSE: tl.constexpr, PRECISION: tl.constexpr, OPERAND: tl.constexpr,
    FP8: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """partial[e, tile of H, t]: the response's sum over one tile of the output; grid: (tiles of T and H, experts)."""
    num_tiles = tl.cdiv(HIDDEN, BLOCK_N)
    tile, part = tile_of_program(tl.program_id(0), tl.cdiv(num_tokens, BLOCK_T), num_tiles, GROUP)
    expert = first_expert + tl.program_id(1)
    fc2 = tl.multiple_of(tl.load(fc2_table + expert).to(tl.pointer_type(OPERAND)), 16)
    rows = tile * BLOCK_T + tl.arange(0, BLOCK_T)
    row = tl.minimum(rows, num_tokens - 1).to(tl.int64)
    hidden_row = tl.program_id(1).to(tl.int64) * num_tokens + row
    columns = part * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.minimum(columns, HIDDEN - 1)
    steps = tl.arange(0, BLOCK_K)

    a = hidden + hidden_row[:, None] * FFN + steps[None, :]
    b = fc2 + column[None, :] * FFN + steps[:, None]
    outputs = product(a, b, FFN, BLOCK_T, BLOCK_N, BLOCK_K, STAGES)
    if FP8:
        scale = tl.load(fc2_scales + expert * HIDDEN + column)
        outputs = outputs * tl.load(hidden_scales + hidden_row)[:, None] * scale[None, :]
    outputs = rounded(outputs, PRECISION)
    if RESPONSE == "projection":
        against = tl.load(vectors + row[:, None] * HIDDEN + column[None, :]).to(tl.float32)
    else:
        against = outputs
    response = tile_response(outputs, against, columns[None, :] < HIDDEN, RESPONSE, HIDDEN % BLOCK_N == 0)
    place = (tl.program_id(1) * num_tiles + part).to(tl.int64) * num_tokens
    tl.store(partial + place + rows, response, mask=rows < num_tokens)


def _shared_constants(form: ExpertForm, precision: torch.dtype, fp8: bool, tiles: GemmTiles) -> dict:
    return {
        "HIDDEN": form.hidden, "FFN": form.ffn, "PRECISION": triton_dtype(precision),
        "OPERAND": tl.float8e4nv if fp8 else triton_dtype(precision), "FP8": fp8, "BLOCK_T": tiles.tokens,
        "BLOCK_N": tiles.columns, "BLOCK_K": tiles.k, "STAGES": tiles.stages, "GROUP": tiles.group,
        "num_warps": tiles.warps, "num_stages": tiles.stages,
    }  # fmt: skip


def fc1_constants(form: ExpertForm, precision: torch.dtype, fp8: bool, tiles: GemmTiles) -> dict:
    """fc1's compile-time arguments and launch options."""
    act = {"ACTIVATION": form.activation, "GATED": form.gated, "ROUND_GATE": form.round_gate}
    return _shared_constants(form, precision, fp8, tiles) | act


def fc2_constants(form: ExpertForm, response: str, precision: torch.dtype, fp8: bool, tiles: GemmTiles) -> dict:
    """fc2's compile-time arguments and launch options."""
    return _shared_constants(form, precision, fp8, tiles) | {"RESPONSE": response}


def score_wide(
    tokens_GH: Tensor,
    token_scales_G: Tensor | None,
    weights: ExpertWeights,
    response: str,
    vectors_GH: Tensor | None,
    tiles: WideTiles,
) -> Tensor:
    """Sums of the responses over the output's columns, fp32 [E, G]; `scorer.finish` makes responses of them."""
    scores_EG = torch.empty(weights.num_experts, tokens_GH.shape[0], dtype=torch.float32, device=tokens_GH.device)
    for experts, block in blocks(weights, tokens_GH.shape[0]):
        scales = None if token_scales_G is None else token_scales_G[block]
        vectors = None if vectors_GH is None else vectors_GH[block]
        hidden_EGF = _hidden(tokens_GH[block], scales, weights, experts, tiles.fc1)
        scores_EG[experts, block] = _summed(hidden_EGF, weights, response, vectors, experts, tiles.fc2)
    return scores_EG


def blocks(weights: ExpertWeights, num_tokens: int) -> Iterator[tuple[slice, slice]]:
    """Slices of experts and tokens whose hidden layer fits the scratch; all tokens of an expert, if they can.

    FP8 keeps the hidden layer in both precisions for a moment.
    """
    row = weights.form.ffn * (weights.precision.itemsize + int(weights.fp8))
    tokens = min(num_tokens, max(1024, SCRATCH_BYTES // row // 1024 * 1024))
    experts = min(weights.num_experts, max(1, SCRATCH_BYTES // (row * tokens)))
    for first in range(0, weights.num_experts, experts):
        for start in range(0, num_tokens, tokens):
            yield slice(first, min(first + experts, weights.num_experts)), slice(start, min(start + tokens, num_tokens))


def _hidden(
    tokens_GH: Tensor, token_scales_G: Tensor | None, weights: ExpertWeights, experts: slice, tiles: GemmTiles
) -> Tensor:
    num_tokens, num_experts, form = tokens_GH.shape[0], experts.stop - experts.start, weights.form
    hidden_EGF = tokens_GH.new_empty(num_experts, num_tokens, form.ffn, dtype=weights.precision)
    grid = (triton.cdiv(num_tokens, tiles.tokens) * triton.cdiv(form.ffn, tiles.columns), num_experts)
    fc1_kernel[grid](
        tokens_GH, weights.fc1_table, token_scales_G, weights.fc1_scales, hidden_EGF, num_tokens, experts.start,
        **fc1_constants(form, weights.precision, weights.fp8, tiles),
    )  # fmt: skip
    return hidden_EGF


def _summed(
    hidden_EGF: Tensor,
    weights: ExpertWeights,
    response: str,
    vectors_GH: Tensor | None,
    experts: slice,
    tiles: GemmTiles,
) -> Tensor:
    (num_experts, num_tokens, _), form = hidden_EGF.shape, weights.form
    hidden, scales = quantize_rows(hidden_EGF) if weights.fp8 else (hidden_EGF, None)
    num_tiles = triton.cdiv(form.hidden, tiles.columns)
    partial = torch.empty(num_experts, num_tiles, num_tokens, dtype=torch.float32, device=hidden.device)
    grid = (triton.cdiv(num_tokens, tiles.tokens) * num_tiles, num_experts)
    fc2_kernel[grid](
        hidden, weights.fc2_table, scales, weights.fc2_scales, vectors_GH, partial, num_tokens, experts.start,
        **fc2_constants(form, response, weights.precision, weights.fp8, tiles),
    )  # fmt: skip
    return partial.sum(dim=1)
