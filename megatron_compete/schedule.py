"""Which layers compete at which step.

The schedule is a pure function of its arguments, so every rank, every microbatch, a recomputed forward pass and a
resumed job see the same table without asking one another. How it is drawn:

* Steps after warm-up are cut into windows. In a window every layer competes equally often: `rate * window` times, with
  the fraction carried from window to window, so no layer is favoured and the long-run rate is exact.
* Each step of a window has `max_active` places. The window's competitions take a random sample of all its places; a
  step can therefore never hold more than `max_active` of them, and a surplus lands on other steps by construction.
* The places, in order of time, are handed to the layers in rounds. Each round holds every layer once and differs from
  the one before by shuffling within blocks short enough that two competitions of one layer are at least `max_active`
  places apart: a layer can never be drawn twice for one step. Where the blocks begin is drawn anew for each round.

A window's draw uses a counter-based generator keyed by (seed, window), so any step is reached without the ones before
it and whatever the length of the run.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from megatron_compete.config import flag_of
from megatron_compete.errors import CompeteError

MIN_WINDOW_STEPS = 256
_CACHED_WINDOWS = 8


@dataclass(frozen=True)
class CompetitionSchedule:
    """The table of competitions of a whole job.

    Args:
        num_layers: layers that can compete; they are numbered from 1.
        rate: fraction of the steps after warm-up at which each layer competes, in [0, 1].
        max_active: most layers that compete at one step (A_max).
        seed: any integer; the same arguments always give the same table.
        warmup_steps: first steps at which nothing competes.

    Raises:
        CompeteError: a value out of range, or `rate * num_layers > max_active`, which no table can meet.
    """

    num_layers: int
    rate: float
    max_active: int
    seed: int = 1234
    warmup_steps: int = 0
    _windows: OrderedDict[int, NDArray[np.bool_]] = field(
        default_factory=OrderedDict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.num_layers < 1:
            raise CompeteError(f"a schedule needs at least one layer that can compete, got {self.num_layers}")
        if not 0.0 <= self.rate <= 1.0:
            raise CompeteError(f"{flag_of('rate')} {self.rate} is out of range: give a number from 0 to 1")
        if self.max_active < 1:
            raise CompeteError(f"{flag_of('max_active_layers')} {self.max_active} is out of range: give 1 or more")
        if self.rate * self.num_layers > self.max_active * (1 + 1e-9):
            raise CompeteError(self._impossible())

    def _impossible(self) -> str:
        wanted = self.rate * self.num_layers
        fits = math.floor(self.max_active / self.num_layers * 1e4) / 1e4
        return (
            f"{flag_of('max_active_layers')} {self.max_active} is below rate * layers = {self.rate:g} * "
            f"{self.num_layers} = {wanted:g}: raise it to {math.ceil(wanted - 1e-9)} or lower "
            f"{flag_of('rate')} to {fits:g}"
        )

    @property
    def window_steps(self) -> int:
        """Steps in a window: a multiple of the layers, so that a whole number of rounds can fill it to the brim."""
        return self.num_layers * math.ceil(MIN_WINDOW_STEPS / self.num_layers)

    def is_active(self, step: int, layer_number: int) -> bool:
        """Whether `layer_number` (from 1) competes at `step` (iterations from 0)."""
        if not 1 <= layer_number <= self.num_layers:
            raise IndexError(f"layer_number {layer_number} is not in 1..{self.num_layers}")
        since_warmup = step - self.warmup_steps
        if since_warmup < 0:
            return False
        window, offset = divmod(since_warmup, self.window_steps)
        return bool(self._window(window)[offset, layer_number - 1])

    def table(self, start: int, stop: int) -> NDArray[np.bool_]:
        """The competitions of steps start..stop-1 as bools [stop - start, num_layers]."""
        if not 0 <= start <= stop:
            raise IndexError(f"steps {start}..{stop} are not a range that starts at 0 or later")
        table = np.zeros((stop - start, self.num_layers), dtype=bool)
        step = max(start, self.warmup_steps)
        while step < stop:
            window, offset = divmod(step - self.warmup_steps, self.window_steps)
            steps = min(self.window_steps - offset, stop - step)
            table[step - start : step - start + steps] = self._window(window)[offset : offset + steps]
            step += steps
        return table

    def _window(self, window: int) -> NDArray[np.bool_]:
        """One window's table, [window_steps, num_layers]; the last few are kept."""
        if window not in self._windows:
            self._windows[window] = self._draw(window)
            if len(self._windows) > _CACHED_WINDOWS:
                self._windows.popitem(last=False)
        return self._windows[window]

    def _draw(self, window: int) -> NDArray[np.bool_]:
        per_window = self.rate * self.window_steps
        rounds = math.floor((window + 1) * per_window + 1e-9) - math.floor(window * per_window + 1e-9)
        table = np.zeros((self.window_steps, self.num_layers), dtype=bool)
        random = np.random.Generator(np.random.Philox(key=np.array([self.seed % 2**64, window], dtype=np.uint64)))
        places_per_step = min(self.max_active, self.num_layers)
        places = random.permutation(self.window_steps * places_per_step)[: rounds * self.num_layers]
        table[np.sort(places) // places_per_step, self._rounds(random, rounds)] = True
        return table

    def _rounds(self, random: np.random.Generator, rounds: int) -> NDArray[np.intp]:
        """`rounds` orders of the layers in a row; any `max_active` neighbours are different layers."""
        order = random.permutation(self.num_layers)
        block = max(1, self.num_layers - self.max_active + 1)
        orders = []
        for _ in range(rounds):
            for start in range(-int(random.integers(block)), self.num_layers, block):
                random.shuffle(order[max(start, 0) : start + block])
            orders.append(order.copy())
        return np.concatenate(orders) if orders else np.empty(0, dtype=np.intp)
