import numpy as np
import pytest

from megatron_compete.data.conversations import packing
from megatron_compete.data.conversations.packing import pack


def test_every_sample_is_in_one_pack_that_holds_it() -> None:
    lengths = np.random.default_rng(0).integers(1, 101, 9000)
    packs = pack(lengths, 100, seed=1)
    members = [packs.of(number).tolist() for number in range(len(packs))]
    assert sorted(number for found in members for number in found) == list(range(9000))
    assert max(int(lengths[found].sum()) for found in members) == 100
    assert lengths.sum() / 100 <= len(packs) < 1.03 * lengths.sum() / 100


def test_samples_of_different_groups_do_not_share() -> None:
    lengths, groups = np.full(40, 10), np.arange(40) % 4 == 0
    packs = pack(lengths, 100, seed=1, groups=groups)
    assert len(packs) == 4 and all(len(set(groups[packs.of(number)].tolist())) == 1 for number in range(4))


def test_packs_follow_from_seed_and_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 200)
    again = [pack(lengths, 100, seed) for seed in (1, 1, 2)]
    assert np.array_equal(again[0].samples, again[1].samples) and np.array_equal(again[0].bounds, again[1].bounds)
    assert not np.array_equal(again[0].samples, again[2].samples)
    monkeypatch.setattr(packing, "WINDOW", 10)
    assert len(pack(lengths, 100, 1)) > len(again[0])
