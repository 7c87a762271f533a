"""Narrow experts: one kernel from tokens to scores, the hidden layer stays on chip.

T tokens of a tile, F width of the experts, H hidden size. A program takes one tile of tokens through one expert: fc1 over
H, activation, then fc2 tile by tile of H, each tile reduced at once. An expert of the authors' 154M model (H=512, F=128)
is 256 KB, so all experts and the tokens of a chunk stay in L2.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from megatron_compete.moe.kernels.coverage import ExpertForm
from megatron_compete.moe.kernels.tile_math import (
    LARGEST_E4M3,
    fc1_tile,
    rounded,
    tile_of_program,
    tile_response,
)
from megatron_compete.moe.kernels.tiles import NarrowTiles
from megatron_compete.moe.kernels.weights import ExpertWeights, triton_dtype

MAX_WIDTH = 256
"""Widest expert whose hidden layer stays on chip."""


@triton.jit(do_not_specialize=["num_tokens", "num_experts"])
def narrow_kernel(
    tokens, fc1_table, fc2_table, token_scales, fc1_scales, fc2_scales, vectors, scores, num_tokens, num_experts,
    HIDDEN: tl.constexpr, FFN: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr, ROUND_GATE: tl.constexpr,
    RESPONSE: tl.constexpr, PRECISION: tl.constexpr, OPERAND: tl.constexpr, FP8: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_F: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_H: tl.constexpr, FC1_STAGES: tl.constexpr,
    FC2_STAGES: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """scores[e, t], before `finish`; one program per tile of tokens and expert."""
    tile, expert = tile_of_program(tl.program_id(0), tl.cdiv(num_tokens, BLOCK_T), num_experts, GROUP)
    fc2 = tl.multiple_of(tl.load(fc2_table + expert).to(tl.pointer_type(OPERAND)), 16)
    rows = tile * BLOCK_T + tl.arange(0, BLOCK_T)
    row = tl.minimum(rows, num_tokens - 1).to(tl.int64)  # what the last tile has too much is computed and dropped
    width = tl.arange(0, BLOCK_F)
    channel = tl.minimum(width, FFN - 1)
    hidden = fc1_tile(
        tokens, fc1_table, token_scales, fc1_scales, expert, row, channel, HIDDEN, FFN, ACTIVATION, GATED, ROUND_GATE,
        PRECISION, OPERAND, FP8, BLOCK_T, BLOCK_F, BLOCK_K, FC1_STAGES,
    )  # fmt: skip
    if FFN != BLOCK_F:
        hidden = tl.where(width[None, :] < FFN, hidden, 0.0)
    if FP8:
        values = rounded(hidden, PRECISION)
        largest = tl.max(tl.abs(values), axis=1)
        hidden_scale = tl.where(largest > 0.0, largest / LARGEST_E4M3, 1.0)
        operand = (values * (1.0 / hidden_scale)[:, None]).to(OPERAND)
    else:
        operand = hidden.to(PRECISION)

    total = tl.zeros((BLOCK_T,), tl.float32)
    for start in tl.range(0, HIDDEN, BLOCK_H, num_stages=FC2_STAGES):
        columns = start + tl.arange(0, BLOCK_H)
        column = tl.minimum(columns, HIDDEN - 1)
        if FFN == BLOCK_F:
            weight = tl.load(fc2 + column[None, :] * FFN + width[:, None])
        else:
            weight = tl.load(fc2 + column[None, :] * FFN + width[:, None], mask=width[:, None] < FFN, other=0.0)
        outputs = tl.dot(operand, weight, input_precision="ieee")
        if FP8:
            outputs = outputs * hidden_scale[:, None] * tl.load(fc2_scales + expert * HIDDEN + column)[None, :]
        outputs = rounded(outputs, PRECISION)
        if RESPONSE == "projection":
            against = tl.load(vectors + row[:, None] * HIDDEN + column[None, :]).to(tl.float32)
        else:
            against = outputs
        total += tile_response(outputs, against, columns[None, :] < HIDDEN, RESPONSE, HIDDEN % BLOCK_H == 0)
    tl.store(scores + expert.to(tl.int64) * num_tokens + rows, total, mask=rows < num_tokens)


def block_width(form: ExpertForm) -> int:
    """Width of the tile that holds an expert's hidden layer."""
    return max(32, triton.next_power_of_2(form.ffn))


def held_columns(form: ExpertForm) -> int:
    """Columns of fc1 that a program holds as fp32 sums, by which its tiles are chosen."""
    return block_width(form) * (2 if form.gated else 1)


def narrow_constants(form: ExpertForm, response: str, precision: torch.dtype, fp8: bool, tiles: NarrowTiles) -> dict:
    """The kernel's compile-time arguments and launch options."""
    return {
        "HIDDEN": form.hidden, "FFN": form.ffn, "ACTIVATION": form.activation, "GATED": form.gated,
        "ROUND_GATE": form.round_gate, "RESPONSE": response, "PRECISION": triton_dtype(precision),
        "OPERAND": tl.float8e4nv if fp8 else triton_dtype(precision), "FP8": fp8, "BLOCK_T": tiles.tokens,
        "BLOCK_F": block_width(form), "BLOCK_K": tiles.k, "BLOCK_H": tiles.columns,
        "FC1_STAGES": tiles.fc1_stages, "FC2_STAGES": tiles.fc2_stages, "GROUP": tiles.group,
        "num_warps": tiles.warps, "num_stages": tiles.fc1_stages,
    }  # fmt: skip


def score_narrow(
    tokens_GH: Tensor,
    token_scales_G: Tensor | None,
    weights: ExpertWeights,
    response: str,
    vectors_GH: Tensor | None,
    tiles: NarrowTiles,
) -> Tensor:
    """Sums of the responses over the output's columns, fp32 [E, G]; `scorer.finish` makes responses of them."""
    num_tokens = tokens_GH.shape[0]
    scores_EG = torch.empty(weights.num_experts, num_tokens, dtype=torch.float32, device=tokens_GH.device)
    grid = (triton.cdiv(num_tokens, tiles.tokens) * weights.num_experts,)
    narrow_kernel[grid](
        tokens_GH, weights.fc1_table, weights.fc2_table, token_scales_G, weights.fc1_scales, weights.fc2_scales,
        vectors_GH, scores_EG, num_tokens, weights.num_experts,
        **narrow_constants(weights.form, response, weights.precision, weights.fp8, tiles),
    )  # fmt: skip
    return scores_EG
