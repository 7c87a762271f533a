"""Which tokens compete at a step where a sample of them does (`--compete-token-fraction`; not in the paper).

The sample is a pure function of seed, step, layer and a token's position in its sequence, so any layout, a recomputed
pass and a resumed job draw the same one. All sequences of a step share it.

The sequence is cut into equal blocks, and every block gives equally many tokens, at regular distances from an offset of
its own (systematic sampling). So each position is as likely as any other, and ranks that split the sequence into as many
parts as there are blocks, or fewer by a factor, hold equal numbers.

S positions of a sequence, F the fraction.
"""

import math

import numpy as np
from numpy.typing import NDArray

LEAST_PER_BLOCK = 4
"""Tokens that a block gives on average, at least: their number is rounded up or down, so fewer would let the cost of a
step vary more."""

_STREAM = 0x746F6B656E73
"""Sets these draws apart from others with the same seed."""


def sample_blocks(fraction: float, sequence_length: int) -> int:
    """Blocks of a sequence: the largest power of two that divides S and leaves a block `LEAST_PER_BLOCK` tokens."""
    blocks = 1
    while sequence_length % (2 * blocks) == 0 and fraction * sequence_length >= 2 * blocks * LEAST_PER_BLOCK:
        blocks *= 2
    return blocks


def sample_positions(
    fraction: float, sequence_length: int, *, seed: int, step: int, layer_number: int
) -> NDArray[np.int64]:
    """The positions that compete, ascending; F * S of them on average over steps and layers.

    A block's number of tokens is F * S / blocks, rounded up or down by one draw for all blocks, up with the probability
    that makes the mean exact.

    Args:
        fraction: F, in (0, 1].
        step: iteration, from 0.
    """
    blocks = sample_blocks(fraction, sequence_length)
    rounding, *offsets = _uniform(1 + blocks, seed, step, layer_number)
    block_length = sequence_length // blocks
    per_block = min(math.floor(fraction * block_length + rounding), block_length)
    places = (np.arange(per_block) + np.array(offsets)[:, None]) * (block_length / max(per_block, 1))
    positions: NDArray[np.int64] = (
        np.minimum(places.astype(np.int64), block_length - 1) + np.arange(blocks)[:, None] * block_length
    ).reshape(-1)
    return positions


def _uniform(count: int, *key: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) from this key; numpy promises the same of this generator's raw bits in every version."""
    words = [_STREAM, *(value % 2**64 for value in key)]
    bits = np.random.Philox(np.random.SeedSequence(words)).random_raw(count)
    numbers: NDArray[np.float64] = (bits >> np.uint64(32)).astype(np.float64)
    return numbers * 2.0**-32  # few enough bits that sums with positions stay exact
