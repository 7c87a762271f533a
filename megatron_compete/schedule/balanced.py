"""Policy `balanced`: layers that compete at one step lie on different pipeline stages, next to each other in depth.

A step of a pipeline is as slow as its slowest stage. Two layers that compete on one stage cost their time twice; on
two stages they cost it once, the more so the closer they are: neighbouring stages move nearly in step, and with
interleaving a slow pass in another model chunk delays them anew (`megatron-compete plan` simulates it). So a window

* lets no stage hold more competing layers at a step than it must (its level),
* has as few steps as possible at that level, full up to A_max, and
* fills a step with neighbours in depth.

All of this is decided by counting, for the slots (stage, chunk) that the layers lie in; chance decides which steps those
are, where in depth the first one begins and which layer of a slot competes when.
"""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
StageChunk = tuple[int, int]
"""Pipeline stage and model chunk."""


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
    """Draws windows for one pipeline layout.

    Args:
        steps: length of a window.
        max_active: most layers at one step.
        stage_chunks: of each layer.
    """

    def __init__(self, steps: int, max_active: int, stage_chunks: tuple[StageChunk, ...]) -> None:
        self.steps, self.max_active = steps, max_active
        self.slots = Groups.of([(chunk, stage) for stage, chunk in stage_chunks])
        self.stages = Groups.of([stage for stage, _ in stage_chunks])
        self.slot_sizes: list[int] = self.slots.sizes.tolist()
        self.stage_of_slot: list[int] = self.stages.of_member[self.slots.first_member].tolist()
        self.counts = functools.lru_cache(maxsize=64)(self._counts)
        self.neighbours = functools.lru_cache(maxsize=256)(self._neighbours)

    def draw(self, random: np.random.Generator, rounds: int) -> NDArray[np.bool_]:
        """A window [steps, layers] in which each layer competes `rounds` times; at most steps * max_active / layers."""
        counts = self.counts(rounds)
        steps = random.permutation(self.steps)
        groups, shares = self.slots, self.neighbours(rounds, int(random.integers(len(self.slots.sizes))))
        if shares is None:
            groups, stages = self.stages, random.permutation(len(self.stages.sizes))
            high, low = np.split(np.arange(self.steps), [counts.high_steps])
            shares = np.concatenate(
                (_wrap_around(high, stages, counts.high), _wrap_around(low, stages, counts.low)), axis=1
            )
        step, group = steps[shares[0]], shares[1]
        # Members of a group take turns in time, so that those of one step differ; where none meet, at random.
        layer, at = groups.take_turns(random, group, step if counts.level > 1 else random.random(len(step)), rounds)
        table = np.zeros((self.steps, len(groups.of_member)), dtype=bool)
        table[step[at], layer] = True
        return table

    def _counts(self, rounds: int) -> Counts:
        """The lowest level that `rounds` competitions of every layer allow, at the fewest steps."""
        wanted = rounds * self.stages.sizes
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
        return np.minimum(self.stages.sizes, max(level, 0))

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

    def _neighbours(self, rounds: int, start: int) -> Ints | None:
        """Steps (those at the level first) and slots of a window's competitions, [2, competitions].

        A step takes slots one after another, in depth from where the last one ended, as many of a stage and in all as
        its level allows. What a slot or stage must give now, because the steps to come could not hold it, is set
        aside first. None where even so something is left over: at rates near 1 the stages' shares may not suit the
        slots.
        """
        counts = self.counts(rounds)
        left = (rounds * self.slots.sizes).tolist()
        steps, slots = [], []
        nothing = [0] * len(left)
        for first, last, level, share in (
            (0, counts.high_steps, counts.level, counts.high),
            (counts.high_steps, self.steps, counts.level - 1, counts.low),
        ):
            stage_left = share.tolist()
            for step in range(first, last if any(stage_left) else first):
                later = self.steps - step - 1
                must = nothing  # as long as the steps to come could hold all that any slot ever had
                if later < rounds:
                    must = [max(0, count - size * later) for count, size in zip(left, self.slot_sizes)]
                stage_must = np.maximum(0, stage_left - self._most(level) * (last - step - 1)).tolist()
                stage_room = np.minimum(stage_left, self._most(level)).tolist()
                chosen = self._slots_of_step(start, left, must, stage_must, stage_room, self._most_together(level))
                for slot in chosen:
                    left[slot] -= 1
                    stage_left[self.stage_of_slot[slot]] -= 1
                start = (chosen[-1] + 1) % len(left) if chosen else start
                steps += [step] * len(chosen)
                slots += chosen
        return None if any(left) else np.array((steps, slots), dtype=np.int64)

    def _slots_of_step(
        self, start: int, left: list[int], must: list[int], stage_must: list[int], stage_room: list[int], room: int
    ) -> list[int]:
        """Slots of one step, down in depth from `start` and round again; a slot is taken once for each layer.

        Args:
            left, must: competitions that slots have left, and those of them that belong to this step.
            stage_must, stage_room: least and most of a stage.
            room: most of all.
        """
        stage_free, stage_set_aside = stage_room.copy(), stage_must.copy()
        for slot, count in enumerate(must):
            stage_free[self.stage_of_slot[slot]] -= count
            stage_set_aside[self.stage_of_slot[slot]] -= count
        if min(stage_free) < 0:
            return []  # the slots ask for more than their stage may give: they will be left over
        stage_set_aside = [max(0, count) for count in stage_set_aside]
        free = room - sum(must) - sum(stage_set_aside)
        chosen: list[int] = []
        must, can = must.copy(), np.minimum(left, self.slots.sizes).tolist()
        lap = -1
        while lap < len(chosen) < room:
            lap = len(chosen)
            for slot in (*range(start, len(left)), *range(start)):
                stage = self.stage_of_slot[slot]
                if len(chosen) == room or not can[slot]:
                    continue
                if must[slot]:
                    must[slot] -= 1
                elif stage_free[stage] > 0 and (stage_set_aside[stage] or free > 0):
                    stage_free[stage] -= 1
                    free -= not stage_set_aside[stage]
                    stage_set_aside[stage] = max(0, stage_set_aside[stage] - 1)
                else:
                    continue
                can[slot] -= 1
                chosen.append(slot)
        return chosen


@dataclass(frozen=True)
class Groups:
    """Members (layers) that share a key, the groups in order of their keys."""

    of_member: Ints
    sizes: Ints
    first_member: Ints
    """A member of each group."""
    start: Ints
    """Where each group begins when members are sorted by group."""

    @classmethod
    def of(cls, keys: list[int] | list[StageChunk]) -> "Groups":
        """Groups of members with these keys."""
        _, first, of_member, sizes = np.unique(
            keys, axis=0, return_index=True, return_inverse=True, return_counts=True
        )  # fmt: skip
        return cls(of_member.reshape(-1), sizes, first, np.cumsum(sizes) - sizes)

    def take_turns(self, random: np.random.Generator, group: Ints, order: NDArray, rounds: int) -> tuple[Ints, Ints]:
        """Hand each group's competitions to its members in turn.

        Args:
            group: of each competition; a group has `rounds` of them for each of its members.
            order: the competitions' order within a group.
        Returns:
            Members, and the index of the competition that each gets, [competitions] both.
        """
        by_group = np.lexsort((order, group))
        group = group[by_group]
        shuffled = np.lexsort((random.random(len(self.of_member)), self.of_member))
        turn = np.arange(len(group)) - rounds * self.start[group]
        return shuffled[self.start[group] + turn % self.sizes[group]], by_group


def _fill(room: Ints, amount: int) -> Ints:
    """`amount` (or all the room) shared out from the first to the last, [len(room)]."""
    until = np.minimum(np.cumsum(room), max(int(amount), 0))
    return np.diff(until, prepend=0)


def _wrap_around(steps: Ints, stages: Ints, counts: Ints) -> Ints:
    """Steps and stages, [2, competitions], of counts[s] competitions for each stage.

    The stages' competitions, one stage after the other, go to the steps in turn. A stage then has at most
    ceil(counts / steps) of them at one step, and a step at most ceil(total / steps) (McNaughton 1959).
    """
    stage_of = np.repeat(stages, counts[stages])
    return np.stack((steps[np.arange(len(stage_of)) % max(len(steps), 1)], stage_of))
