"""Samples of positions: how many, where, and how often."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_compete.routing.sample import sample_blocks, sample_positions


@pytest.mark.parametrize(
    ("fraction", "length", "blocks"), [(0.03, 4096, 16), (0.25, 128, 8), (0.03, 1024, 4), (0.5, 33, 1), (0.01, 16, 1)]
)
def test_every_block_gives_as_many(fraction: float, length: int, blocks: int) -> None:
    assert sample_blocks(fraction, length) == blocks
    for step in range(50):
        positions = sample_positions(fraction, length, seed=7, step=step, layer_number=3)
        assert (np.diff(positions) > 0).all()
        counts = np.bincount(positions * blocks // length, minlength=blocks)
        assert len(set(counts)) == 1
        assert abs(counts[0] - fraction * length / blocks) < 1


@pytest.mark.parametrize(("fraction", "length"), [(0.03, 1024), (0.3, 24), (0.9, 33), (0.02, 16)])
def test_every_position_is_as_likely(fraction: float, length: int) -> None:
    steps = 4000
    drawn = [sample_positions(fraction, length, seed=7, step=step, layer_number=3) for step in range(steps)]
    found = np.bincount(np.concatenate(drawn), minlength=length) / steps
    deviation = np.sqrt(fraction * (1 - fraction) / steps)
    assert np.abs(found - fraction).max() < 5 * deviation


def test_a_sample_depends_on_seed_step_and_layer() -> None:
    samples = {
        key: tuple(sample_positions(0.1, 256, seed=key[0], step=key[1], layer_number=key[2]))
        for key in [(1, 0, 1), (2, 0, 1), (1, 1, 1), (1, 0, 2), (-1, 0, 1)]
    }
    assert len(set(samples.values())) == len(samples)
    assert samples[1, 0, 1] == tuple(sample_positions(0.1, 256, seed=1, step=0, layer_number=1))


FRACTIONS = st.floats(min_value=1e-4, max_value=1.0)


@given(FRACTIONS, st.integers(1, 64), st.sampled_from([1, 2, 8, 64]), st.integers(0, 10**6), st.data())
def test_every_stretch_of_a_block_has_its_share(
    fraction: float, odd: int, power: int, step: int, data: st.DataObject
) -> None:
    """Rounded up or down: of ranks that split a block, none has two more than another with as long a part."""
    length = odd * power
    positions = sample_positions(fraction, length, seed=3, step=step, layer_number=2)
    assert (np.diff(positions) > 0).all() and ((positions >= 0) & (positions < length)).all()
    blocks = sample_blocks(fraction, length)
    block_length, per_block = length // blocks, len(positions) // blocks
    assert per_block in (math.floor(fraction * block_length), math.ceil(fraction * block_length))
    start = data.draw(st.integers(0, block_length - 1)) + block_length * data.draw(st.integers(0, blocks - 1))
    end = data.draw(st.integers(start + 1, (start // block_length + 1) * block_length))
    share = (end - start) * per_block / block_length
    found = ((positions >= start) & (positions < end)).sum()
    assert found in (math.floor(share), math.ceil(share))


@given(FRACTIONS, st.integers(1, 12), st.integers(0, 4), st.integers(0, 10**6))
def test_parts_that_are_whole_blocks_have_equally_many(fraction: float, odd: int, log: int, step: int) -> None:
    length = odd * 64
    blocks, parts = sample_blocks(fraction, length), 2**log
    positions = sample_positions(fraction, length, seed=3, step=step, layer_number=2)
    if blocks % parts == 0:
        assert len(set(np.bincount(positions // (length // parts), minlength=parts))) == 1
    else:
        assert fraction * length < 2 * blocks * 4  # no more blocks, for those would have fewer than four tokens


@pytest.mark.parametrize(("fraction", "length"), [(0.03, 4096), (0.3, 32), (0.07, 1000), (0.001, 64), (1 / 3, 96)])
def test_the_mean_of_a_thousand_steps_is_the_fraction(fraction: float, length: int) -> None:
    counts = [len(sample_positions(fraction, length, seed=7, step=step, layer_number=3)) for step in range(1000)]
    blocks = sample_blocks(fraction, length)
    per_block = fraction * length / blocks
    assert set(counts) == {blocks * math.floor(per_block), blocks * math.ceil(per_block)}
    up = per_block % 1
    assert abs(np.mean(counts) - fraction * length) < 5 * blocks * math.sqrt(up * (1 - up) / 1000) + 1e-9
