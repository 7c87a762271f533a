"""Policy `shifted`: the authors' procedure. Layers draw their steps one after another; where a step is full, the draw
moves to the nearest step on its left that has room, or else on its right.

Two things differ from the authors' code, which draws the whole run at once: the draw is by window, so that any step is
reached without the ones before it, and a layer draws how it shares its fixed number of competitions over the window
rather than that number too. Layers take turns in random order, and a draw that finds no room at all takes the step of
another layer, which moves to one with room, so no layer is favoured and no draw is lost at any load.

Sets of steps are Python integers, bit i for step i of the window: moving and counting 256 steps is a few machine words.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


def draw_shifted(
    random: np.random.Generator, steps: int, num_layers: int, rounds: int, max_active: int
) -> NDArray[np.bool_]:
    """A window [steps, layers] in which each layer competes `rounds` times; at most steps * max_active / layers."""
    if rounds == 0:
        return np.zeros((steps, num_layers), dtype=bool)
    draws = _draw_steps(random, steps, num_layers, rounds)
    load = Load(steps, max_active)
    placed: dict[int, int] = {}
    for layer in random.permutation(num_layers).tolist():
        placed[layer] = _shift(draws[layer], load.room())
        load.add(placed[layer])
        for _ in range(rounds - placed[layer].bit_count()):
            _exchange(placed, layer, load)
    return _as_table([placed[layer] for layer in range(num_layers)], steps)


@dataclass
class Load:
    """Competitions at each step so far, in binary: digit d of step i is bit i of `digits[d]`."""

    steps: int
    limit: int
    digits: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.digits = [0] * self.limit.bit_length()

    def add(self, steps: int) -> None:
        """One more at each of these steps; they had room."""
        for position, digit in enumerate(self.digits):
            self.digits[position], steps = digit ^ steps, digit & steps

    def room(self) -> int:
        """The steps with fewer than `limit`."""
        every = (1 << self.steps) - 1
        full = every
        for position, digit in enumerate(self.digits):
            full &= digit if self.limit >> position & 1 else ~digit
        return every & ~full


def _shift(draws: int, room: int) -> int:
    """Steps of one layer: its draws where there is room, the others moved; those that find none are left out."""
    taken = draws & room
    surplus = draws & ~room
    while surplus and (free := room & ~taken):
        step = (surplus & -surplus).bit_length() - 1
        surplus &= surplus - 1
        left = free & ((1 << step) - 1)
        if left:
            taken |= 1 << (left.bit_length() - 1)
        else:
            taken |= free & -free  # the lowest: nothing is free below `step`
    return taken


def _exchange(placed: dict[int, int], layer: int, load: Load) -> None:
    """One more step for `layer`, when it already competes wherever there is room.

    Another layer leaves a full step for one with room that it is not in yet, and `layer` takes its place. There is
    such a layer: steps without `layer` are full, so some layer at them is missing at a step with room; and as it
    competes more often than `layer` does so far, it competes somewhere without it.
    """
    room = load.room()
    for other, steps in placed.items():
        to, leaves = room & ~steps, steps & ~placed[layer]
        if other != layer and to and leaves:
            to, leaves = to & -to, leaves & -leaves
            placed[other] = steps ^ leaves | to
            placed[layer] |= leaves
            load.add(to)
            return
    raise AssertionError("more competitions than A_max times the steps")


def _draw_steps(random: np.random.Generator, steps: int, num_layers: int, rounds: int) -> list[int]:
    """`rounds` of the steps for each layer: those with its smallest random numbers, which all differ in the last bits."""
    shift = steps.bit_length()
    numbers = random.integers(0, 2 ** (32 - shift), size=(num_layers, steps), dtype=np.uint32) << shift
    numbers += np.arange(steps, dtype=np.uint32)
    drawn = numbers <= np.partition(numbers, rounds - 1, axis=1)[:, rounds - 1 : rounds]
    packed = np.packbits(drawn, axis=1, bitorder="little")
    return [int.from_bytes(row.tobytes(), "little") for row in packed]


def _as_table(sets: list[int], steps: int) -> NDArray[np.bool_]:
    size = (steps + 7) // 8
    packed = np.frombuffer(b"".join(steps_set.to_bytes(size, "little") for steps_set in sets), dtype=np.uint8)
    rows = np.unpackbits(packed.reshape(len(sets), size), axis=1, count=steps, bitorder="little")
    return rows.T.astype(bool)
