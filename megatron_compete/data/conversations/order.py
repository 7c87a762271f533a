"""Which sample is the i-th: each epoch in an order of its own, which follows from the seed alone.

Megatron hands out indices in their order, global batch by global batch, to however many ranks there are: a run goes on
where it stopped, in any data-parallel layout.
"""

from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_PLAIN, _WITHOUT_IMAGES, _WITH_IMAGES, _BATCHES, _PACKS, _SPLIT = range(6)
"""What a permutation is drawn for."""


class Order(Protocol):
    """From an index to a sample's number (of packed samples, the pack's)."""

    def __getitem__(self, index: int) -> int: ...


@lru_cache(maxsize=8)
def permutation(seed: int, purpose: int, epoch: int, size: int) -> NDArray[np.int64]:
    """The numbers below `size` in an order that no version of numpy changes (NEP 19 fixes RandomState's)."""
    bits = np.random.MT19937(np.random.SeedSequence([seed, purpose, epoch]))
    return np.random.RandomState(bits).permutation(size).astype(np.int64)


class Shuffled:
    """Every sample once an epoch.

    Args:
        size: samples.
    """

    def __init__(self, size: int, seed: int, purpose: int = _PLAIN) -> None:
        self.size, self.seed, self.purpose = size, seed, purpose

    def __getitem__(self, index: int) -> int:
        epoch, place = divmod(index, self.size)
        return int(permutation(self.seed, self.purpose, epoch, self.size)[place])


class Grouped:
    """Global batches all with or all without images.

    Samples of each kind are an endless line of epochs, cut into batches; what is left of a kind at an epoch's end begins
    its first batch of the next, so no batch is mixed. Within an epoch the batches of both kinds are shuffled.

    Args:
        has_images: of each sample.
        batch_size: the global one.
    """

    def __init__(self, has_images: NDArray[np.bool_], seed: int, batch_size: int) -> None:
        self.seed, self.batch_size = seed, batch_size
        self._kinds = [np.flatnonzero(~has_images), np.flatnonzero(has_images)]
        self._lines = [
            Shuffled(len(numbers), seed, purpose)
            for numbers, purpose in zip(self._kinds, (_WITHOUT_IMAGES, _WITH_IMAGES))
        ]

    def __getitem__(self, index: int) -> int:
        batch, place = divmod(index, self.batch_size)
        kind, of_kind = self._batch(batch)
        return int(self._kinds[kind][self._lines[kind][of_kind * self.batch_size + place]])

    def _batch(self, batch: int) -> tuple[int, int]:
        """Whether a batch has images (1) or none (0), and which of that kind it is."""
        epoch = batch * self.batch_size // sum(map(len, self._kinds))
        while sum(self._before(epoch + 1)) <= batch:  # once or twice, for what was left over
            epoch += 1
        before, after = self._before(epoch), self._before(epoch + 1)
        count = sum(after) - sum(before)
        drawn = int(permutation(self.seed, _BATCHES, epoch, count)[batch - sum(before)])
        without = after[0] - before[0]
        return (0, before[0] + drawn) if drawn < without else (1, before[1] + drawn - without)

    def _before(self, epoch: int) -> list[int]:
        """Whole batches of each kind before an epoch."""
        return [epoch * len(numbers) // self.batch_size for numbers in self._kinds]


def split(size: int, begin: float, end: float) -> NDArray[np.int64]:
    """The samples of a part of --split, from share `begin` to `end`: the same for every seed, in the order of the files."""
    numbers = permutation(0, _SPLIT, 0, size)
    return np.sort(numbers[round(begin * size) : round(end * size)])


def packing_order(size: int, seed: int) -> NDArray[np.int64]:
    """The order in which samples are packed."""
    return permutation(seed, _PACKS, 0, size)
