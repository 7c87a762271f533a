from collections import Counter

import numpy as np
import pytest

from megatron_compete.data.conversations.order import Grouped, Shuffled, packing_order, permutation, split


def test_orders_do_not_change_with_versions() -> None:
    """Runs are resumed with another numpy too."""
    assert permutation(1234, 0, 0, 8).tolist() == [1, 6, 4, 0, 3, 5, 2, 7]
    assert sorted(packing_order(20, 3).tolist()) == list(range(20))


def test_every_epoch_has_every_sample_once_in_an_order_of_its_own() -> None:
    order = Shuffled(10, seed=1)
    epochs = [[order[index] for index in range(start, start + 10)] for start in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs) and epochs[0] != epochs[1] != epochs[2]
    assert (
        [Shuffled(10, seed=1)[index] for index in range(10)]
        == epochs[0]
        != [Shuffled(10, 2)[index] for index in range(10)]
    )


@pytest.mark.parametrize(
    ("with_images", "without", "batch_size"), [(37, 13, 4), (50, 3, 8), (5, 0, 4), (0, 9, 4), (3, 2, 16)]
)
def test_batches_are_of_one_kind_and_shares_are_kept(with_images: int, without: int, batch_size: int) -> None:
    size = with_images + without
    has_images = np.random.default_rng(0).permutation(np.arange(size) < with_images)
    order = Grouped(has_images, seed=5, batch_size=batch_size)
    epochs = 12
    batches = [
        [order[batch * batch_size + place] for place in range(batch_size)]
        for batch in range(epochs * size // batch_size)
    ]
    assert all(len(set(has_images[batch].tolist())) == 1 for batch in batches)
    times = Counter(number for batch in batches for number in batch)
    for kind, count in ((True, with_images), (False, without)):
        seen = sum(times[number] for number in np.flatnonzero(has_images == kind).tolist())
        assert abs(seen - epochs * count) <= 2 * batch_size
        of_kind = [times[number] for number in np.flatnonzero(has_images == kind).tolist()]
        assert not of_kind or max(of_kind) - min(of_kind) <= 1  # nobody is seen again before everybody was


def test_kinds_alternate_within_an_epoch() -> None:
    has_images = np.arange(64) < 32
    order = Grouped(has_images, seed=5, batch_size=4)
    kinds = [bool(has_images[order[batch * 4]]) for batch in range(16)]
    assert sum(kinds) == 8 and kinds not in (sorted(kinds), sorted(kinds, reverse=True))


def test_parts_of_a_split_do_not_share_and_leave_nothing_out() -> None:
    parts = [split(101, begin, end) for begin, end in ((0.0, 0.9), (0.9, 0.97), (0.97, 1.0))]
    assert [len(part) for part in parts] == [91, 7, 3]
    assert sorted(number for part in parts for number in part.tolist()) == list(range(101))
    assert parts[1].tolist() == sorted(parts[1].tolist()) and parts[1].tolist() != list(range(91, 98))
