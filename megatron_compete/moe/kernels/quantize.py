"""FP8 with one scale a row: e4m3 values and fp32 scales, `row = values * scale`.

Rows are tokens, hidden layers of tokens, or output channels of a weight matrix, so a GEMM's scales lie outside of its
sum and are applied to the fp32 result.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from megatron_compete.moe.kernels.tile_math import LARGEST_E4M3
from megatron_compete.moe.kernels.weights import triton_dtype

BLOCK_ROWS, BLOCK_COLUMNS = 8, 512


@triton.jit(do_not_specialize=["num_rows"])
def quantize_kernel(
    source, table, values, scales, num_rows,
    COLUMNS: tl.constexpr, PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Rows of one matrix at `source`, or of the matrices whose addresses `table` holds; grid: (row tiles, matrices)."""
    matrix = tl.program_id(1)
    if table is None:
        start = source
    else:
        start = tl.multiple_of(tl.load(table + matrix).to(tl.pointer_type(PRECISION)), 16)
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    row = tl.minimum(rows, num_rows - 1).to(tl.int64)
    inside = rows[:, None] < num_rows
    steps = tl.arange(0, BLOCK_C)

    largest = tl.zeros((BLOCK_R,), tl.float32)
    for first in range(0, COLUMNS, BLOCK_C):
        columns = (first + steps)[None, :]
        tile = tl.load(start + row[:, None] * COLUMNS + columns, mask=columns < COLUMNS, other=0.0)
        largest = tl.maximum(largest, tl.max(tl.abs(tile.to(tl.float32)), axis=1))
    scale = tl.where(largest > 0.0, largest / LARGEST_E4M3, 1.0)
    out_row = matrix.to(tl.int64) * num_rows + row
    tl.store(scales + out_row, scale, mask=rows < num_rows)
    for first in range(0, COLUMNS, BLOCK_C):
        columns = (first + steps)[None, :]
        tile = tl.load(start + row[:, None] * COLUMNS + columns, mask=columns < COLUMNS, other=0.0)
        quantized = (tile.to(tl.float32) * (1.0 / scale)[:, None]).to(tl.float8e4nv)
        tl.store(values + out_row[:, None] * COLUMNS + columns, quantized, mask=inside & (columns < COLUMNS))


def quantize_rows(source: Tensor) -> tuple[Tensor, Tensor]:
    """e4m3 values [..., C] and fp32 scales [...] of a contiguous tensor [..., C]."""
    columns = source.shape[-1]
    num_rows = source.numel() // columns
    values = torch.empty_like(source, dtype=torch.float8_e4m3fn)
    scales = source.new_empty(source.shape[:-1], dtype=torch.float32)
    _launch(source, None, values, scales, num_rows, 1, source.dtype)
    return values, scales


def quantize_matrices(table: Tensor, num_rows: int, num_columns: int, precision: torch.dtype) -> tuple[Tensor, Tensor]:
    """e4m3 values [E, R, C] and scales [E, R] of the matrices [R, C] whose addresses int64 `table` [E] holds."""
    count = table.shape[0]
    values = torch.empty(count, num_rows, num_columns, dtype=torch.float8_e4m3fn, device=table.device)
    scales = torch.empty(count, num_rows, dtype=torch.float32, device=table.device)
    _launch(None, table, values, scales, num_rows, count, precision)
    return values, scales


def _launch(
    source: Tensor | None,
    table: Tensor | None,
    values: Tensor,
    scales: Tensor,
    num_rows: int,
    count: int,
    precision: torch.dtype,
) -> None:
    if num_rows:
        quantize_kernel[(triton.cdiv(num_rows, BLOCK_ROWS), count)](
            source, table, values, scales, num_rows, COLUMNS=values.shape[-1], PRECISION=triton_dtype(precision),
            BLOCK_R=BLOCK_ROWS, BLOCK_C=BLOCK_COLUMNS, num_warps=4,
        )  # fmt: skip
