"""Which conversations share a sequence: found once, from their lengths, the settings and the seed."""

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_compete.data.conversations.order import packing_order

WINDOW = 4096
"""Conversations among which partners are looked for: shuffled before, so that a pack is not all of one source."""


@dataclass(frozen=True)
class Packs:
    """Sequences of several samples."""

    samples: NDArray[np.int64]
    """Numbers of samples, pack after pack."""
    bounds: NDArray[np.int64]
    """[packs + 1]: where each pack begins among them."""

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def of(self, pack: int) -> NDArray[np.int64]:
        """The samples of a pack."""
        return self.samples[self.bounds[pack] : self.bounds[pack + 1]]


def pack(lengths: NDArray[np.int64], capacity: int, seed: int, groups: NDArray[np.bool_] | None = None) -> Packs:
    """Put samples into as few sequences as are easily found: the longest first, each where it leaves the least room.

    Args:
        lengths: positions of each sample, none above `capacity`.
        groups: samples of different groups do not share a sequence.
    """
    order = packing_order(len(lengths), seed)
    lines = [order] if groups is None else [order[~groups[order]], order[groups[order]]]
    windows = [line[at : at + WINDOW] for line in lines for at in range(0, len(line), WINDOW)]
    packs = [found for window in windows for found in _pack_window(window, lengths, capacity)]
    bounds = np.cumsum([0, *map(len, packs)])
    return Packs(np.array([number for found in packs for number in found], dtype=np.int64), bounds.astype(np.int64))


def _pack_window(window: NDArray[np.int64], lengths: NDArray[np.int64], capacity: int) -> list[list[int]]:
    packs: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # what is free in each pack, ascending
    for number in window[np.argsort(-lengths[window], kind="stable")].tolist():
        length = int(lengths[number])
        at = bisect_left(rooms, (length, -1))
        if at == len(rooms):
            packs.append([])
            room, place = capacity, len(packs) - 1
        else:
            room, place = rooms.pop(at)
        packs[place].append(number)
        insort(rooms, (room - length, place))
    return packs
