"""Policy `balanced`: competitions of one step lie on different pipeline stages.

A step of a pipeline is as slow as its slowest stage. Two layers that compete on one stage cost their time twice; on
two stages they cost it once. So the draw of a window

* lets no stage hold more competing layers at a step than it must (its level), and
* has as few steps as possible at that level: competitions of different stages coincide, as far as A_max allows.

Both are done by counting alone. Which steps those are, which stages meet, and which layers of a stage, is random.
"""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Counts:
    """How a window's competitions are shared out: at `high_steps` steps up to `level` a stage, elsewhere one less."""

    level: int
    high_steps: int
    high: Ints
    """Competitions of each stage at those steps, [stages]."""
    low: Ints
    """And at the others, [stages]."""


class BalancedDraw:
    """Draws windows for one placement of layers.

    Args:
        steps: length of a window.
        max_active: most layers at one step.
        stages: pipeline stage of each layer, any integers.
    """

    def __init__(self, steps: int, max_active: int, stages: tuple[int, ...]) -> None:
        self.steps, self.max_active = steps, max_active
        _, stage_of_layer, sizes = np.unique(stages, return_inverse=True, return_counts=True)
        self.stage_of_layer: Ints = stage_of_layer.astype(np.int64)
        self.sizes: Ints = sizes.astype(np.int64)
        self.first_layer = np.cumsum(self.sizes) - self.sizes
        self.counts = functools.lru_cache(maxsize=64)(self._counts)

    def draw(self, random: np.random.Generator, rounds: int) -> NDArray[np.bool_]:
        """A window [steps, layers] in which each layer competes `rounds` times; at most steps * max_active / layers."""
        counts = self.counts(rounds)
        steps = random.permutation(self.steps)
        stages = random.permutation(len(self.sizes))
        high, low = steps[: counts.high_steps], steps[counts.high_steps :]
        step_of_place, stage_of_place = np.concatenate(
            (_wrap_around(high, stages, counts.high), _wrap_around(low, stages, counts.low)), axis=1
        )
        by_stage = np.lexsort((step_of_place, stage_of_place))
        step_of_place, stage_of_place = step_of_place[by_stage], stage_of_place[by_stage]
        layers = np.lexsort((random.random(len(self.stage_of_layer)), self.stage_of_layer))
        # A stage's places, in order of time, go to its layers in turn: neighbours, so those of one step, differ.
        turn = np.arange(len(by_stage)) - rounds * self.first_layer[stage_of_place]
        layer_of_place = layers[self.first_layer[stage_of_place] + turn % self.sizes[stage_of_place]]
        table = np.zeros((self.steps, len(self.stage_of_layer)), dtype=bool)
        table[step_of_place, layer_of_place] = True
        return table

    def _counts(self, rounds: int) -> Counts:
        """The lowest level that `rounds` competitions of every layer allow, at the fewest steps."""
        wanted = rounds * self.sizes
        level = 0
        while not self._fits(wanted, level, self.steps):
            level += 1
        high_steps = 0
        if level > 0:
            low, high = 0, self.steps  # high_steps lies in (low, high]: none do not suffice, all do
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if self._fits(wanted, level, middle) else (middle, high)
            high_steps = high
        low_steps = self.steps - high_steps
        at_low = np.maximum(0, wanted - high_steps * self._most(level))
        at_low += _fill(
            np.minimum(wanted, low_steps * self._most(level - 1)) - at_low,
            low_steps * self._most_together(level - 1) - at_low.sum(),
        )
        return Counts(level, high_steps, wanted - at_low, at_low)

    def _most(self, level: int) -> Ints:
        """Layers of each stage at one step."""
        return np.minimum(self.sizes, max(level, 0))

    def _most_together(self, level: int) -> int:
        """Layers of all stages at one step."""
        return min(self.max_active, int(self._most(level).sum()))

    def _fits(self, wanted: Ints, level: int, high_steps: int) -> bool:
        """Whether `high_steps` steps at `level` and the others at one less have room for `wanted` of each stage.

        A flow from two kinds of steps to the stages, each arc with its room; by max-flow min-cut it meets the demand
        if it does so for each set of kinds that is cut off.
        """
        low_steps = self.steps - high_steps
        room = (high_steps * self._most(level), low_steps * self._most(level - 1))
        together = (high_steps * self._most_together(level), low_steps * self._most_together(level - 1))
        flow = min(
            int(np.minimum(wanted, room[0] + room[1]).sum()),
            together[0] + int(np.minimum(wanted, room[1]).sum()),
            together[1] + int(np.minimum(wanted, room[0]).sum()),
            together[0] + together[1],
        )
        return flow >= int(wanted.sum())


def _fill(room: Ints, amount: int) -> Ints:
    """`amount` (or all the room) shared out from the first to the last, [len(room)]."""
    until = np.minimum(np.cumsum(room), max(int(amount), 0))
    return np.diff(until, prepend=0)


def _wrap_around(steps: Ints, stages: Ints, counts: Ints) -> Ints:
    """Steps and stages, [2, places], of counts[s] places for each stage.

    The stages' places, one stage after the other, go to the steps in turn. A stage then has at most
    ceil(counts / steps) of them at one step, and a step at most ceil(total / steps) (McNaughton 1959).
    """
    stage_of_place = np.repeat(stages, counts[stages])
    return np.stack((steps[np.arange(len(stage_of_place)) % max(len(steps), 1)], stage_of_place))
