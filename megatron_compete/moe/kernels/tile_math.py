"""What the kernels do with a tile: products, activations, responses.

M rows and N columns of a tile, K the summed dimension. Rounding points are those of Megatron's modules: fc1's output,
the hidden layer and fc2's output are rounded to PRECISION (bf16), everything between is fp32.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
SQRT_HALF = tl.constexpr(0.7071067811865476)
LARGEST_E4M3 = tl.constexpr(448.0)
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def tile_of_program(program, num_rows, num_columns, GROUP: tl.constexpr):
    """(row, column) of a tile, so that programs that run together share operands in L2.

    Rows are taken GROUP at a time; within a group they run faster than columns.
    """
    group = program // (GROUP * num_columns)
    first = group * GROUP
    height = tl.minimum(num_rows - first, GROUP)
    within = program % (GROUP * num_columns)
    return first + within % height, within // height


@triton.jit
def _load(pointers, offsets, end, WHOLE: tl.constexpr):
    if WHOLE:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=offsets < end, other=0.0)


@triton.jit
def product(
    a, b, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr
):
    """sum_k a[m, k] b[k, n] in fp32, from pointers to the first tiles [M, BLOCK_K] and [BLOCK_K, N]; k is contiguous."""
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    steps = tl.arange(0, BLOCK_K)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        a_tile = _load(a, start + steps[None, :], K, K % BLOCK_K == 0)
        b_tile = _load(b, start + steps[:, None], K, K % BLOCK_K == 0)
        total = tl.dot(a_tile, b_tile, total, input_precision="ieee")
        a += BLOCK_K
        b += BLOCK_K
    return total


@triton.jit
def product_pair(
    a, b, c, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr
):
    """`product` of a with b and of a with c; a is read once."""
    first = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    second = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    steps = tl.arange(0, BLOCK_K)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        a_tile = _load(a, start + steps[None, :], K, K % BLOCK_K == 0)
        b_tile = _load(b, start + steps[:, None], K, K % BLOCK_K == 0)
        c_tile = _load(c, start + steps[:, None], K, K % BLOCK_K == 0)
        first = tl.dot(a_tile, b_tile, first, input_precision="ieee")
        second = tl.dot(a_tile, c_tile, second, input_precision="ieee")
        a += BLOCK_K
        b += BLOCK_K
        c += BLOCK_K
    return first, second


@triton.jit
def rounded(x, PRECISION: tl.constexpr):
    """fp32 values as they are after a round trip through PRECISION.

    Two bf16 at a time: for a single one ptxas takes an instruction (F2F) of the unit that also computes exponentials,
    and in narrow experts that unit is what the response waits for.
    """
    if PRECISION == tl.bfloat16 and not INTERPRETED:  # noqa: SIM300  a constant of the kernel, not of Python
        y = tl.inline_asm_elementwise(
            "{.reg .b32 pair; cvt.rn.bf16x2.f32 pair, $3, $2; shl.b32 $0, pair, 16; and.b32 $1, pair, 0xffff0000;}",
            "=r,=r,r,r", [x], dtype=tl.float32, is_pure=True, pack=2,
        )  # fmt: skip
    else:
        y = x.to(PRECISION).to(tl.float32)
    return y


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """The activation of fp32 values; names as in `coverage.ACTIVATIONS`."""
    if ACTIVATION == "relu":
        y = tl.maximum(x, 0.0)
    elif ACTIVATION == "squared_relu":
        y = tl.maximum(x, 0.0) * tl.maximum(x, 0.0)
    elif ACTIVATION == "silu":
        y = x * tl.sigmoid(x)
    elif ACTIVATION == "quick_gelu":
        y = x * tl.sigmoid(1.702 * x)
    elif ACTIVATION == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * SQRT_HALF))
    else:
        tl.static_assert(ACTIVATION == "gelu_tanh", "no such activation")
        y = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))  # 1 + tanh(u) = 2 sigmoid(2 u)
    return y


@triton.jit
def hidden_tile(
    gate, up, ACTIVATION: tl.constexpr, GATED: tl.constexpr, ROUND_GATE: tl.constexpr, PRECISION: tl.constexpr
):
    """The hidden layer from fc1's fp32 sums, in fp32 yet to be rounded to PRECISION; `up` counts where GATED alone.

    ROUND_GATE: act(gate) is rounded before it is multiplied, as where Megatron runs the two one after the other.
    """
    hidden = activate(rounded(gate, PRECISION), ACTIVATION)
    if GATED:
        if ROUND_GATE:
            hidden = rounded(hidden, PRECISION)
        hidden = hidden * rounded(up, PRECISION)
    return hidden


@triton.jit
def fc1_tile(
    tokens, fc1_table, token_scales, fc1_scales, expert, row, channel, HIDDEN: tl.constexpr, FFN: tl.constexpr,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, ROUND_GATE: tl.constexpr, PRECISION: tl.constexpr,
    OPERAND: tl.constexpr, FP8: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """The hidden layer [BLOCK_M, BLOCK_N] of one expert, fp32 between rounding points: fc1 over H, then the activation.

    `row` and `channel` are the tile's tokens and channels, within bounds.
    """
    fc1 = tl.multiple_of(tl.load(fc1_table + expert).to(tl.pointer_type(OPERAND)), 16)
    steps = tl.arange(0, BLOCK_K)
    a = tokens + row[:, None] * HIDDEN + steps[None, :]
    b = fc1 + channel[None, :] * HIDDEN + steps[:, None]
    if GATED:
        gate, up = product_pair(a, b, b + FFN * HIDDEN, HIDDEN, BLOCK_M, BLOCK_N, BLOCK_K, STAGES)
    else:
        gate = product(a, b, HIDDEN, BLOCK_M, BLOCK_N, BLOCK_K, STAGES)
        up = gate
    if FP8:
        token_scale = tl.load(token_scales + row)[:, None]
        scale = fc1_scales + expert * ((1 + GATED) * FFN) + channel
        gate = gate * token_scale * tl.load(scale)[None, :]
        if GATED:
            up = up * token_scale * tl.load(scale + FFN)[None, :]
    return hidden_tile(gate, up, ACTIVATION, GATED, ROUND_GATE, PRECISION)


@triton.jit
def _multiply(a, b):
    return a * b


@triton.jit
def tile_response(outputs, vectors, inside, RESPONSE: tl.constexpr, WHOLE: tl.constexpr):
    """One tile's part [M] of the response's sum over the output's columns.

    softplus(y) = max(y, 0) + ln(1 + exp(-|y|)), and a sum of logarithms is the logarithm of a product: one logarithm a
    row and tile instead of one an element, which the special function units could not keep up with in narrow experts.
    Factors lie in (1, 2]; divided by sqrt(2), a product of up to 128 stays within 2^-64 and 2^64.

    Args:
        outputs: rounded outputs [M, N] as fp32; N at most 128 for softplus.
        vectors: [M, N] for the projection y . v, fp32.
        inside: [1, N], which columns exist; only read unless WHOLE.
    """
    if RESPONSE == "softplus":
        tl.static_assert(outputs.shape[1] <= 128, "a product of more factors may overflow")
        if not WHOLE:
            outputs = tl.where(inside, outputs, -float("inf"))
        factors = tl.exp2(-LOG2_E * tl.abs(outputs)) * SQRT_HALF + SQRT_HALF
        logarithm = tl.log2(tl.reduce(factors, 1, _multiply)) + 0.5 * outputs.shape[1]
        part = tl.sum(tl.maximum(outputs, 0.0), axis=1) + LN_2 * logarithm
    else:
        if not WHOLE:
            outputs = tl.where(inside, outputs, 0.0)
        if RESPONSE == "l2":
            part = tl.sum(outputs * outputs, axis=1)
        else:
            tl.static_assert(RESPONSE == "projection", "no such response")
            part = tl.sum(outputs * vectors, axis=1)
    return part
