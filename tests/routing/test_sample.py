"""Samples of positions: how many, where, and how often."""

import numpy as np
import pytest

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
