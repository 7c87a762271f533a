"""Which layers compete at which step.

The schedule is a pure function of its arguments, so every rank, every microbatch, a recomputed forward pass and a
resumed job see the same table without asking one another. Steps after warm-up are cut into windows. In a window every
layer competes equally often, rate * window times on average, the fraction carried from window to window; which steps
those are is drawn by the policy, from a counter-based generator keyed by (seed, window). So any step is reached without
the ones before it, and whatever the length of the run.
"""

import hashlib
import itertools
import json
import math
from collections import OrderedDict
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig, flag_of
from megatron_compete.schedule.balanced import BalancedDraw, StageChunk
from megatron_compete.schedule.rate import LEAST_MAX_ACTIVE, Decay, RateCurve, default_max_active
from megatron_compete.schedule.shifted import draw_shifted

Policy = Literal["balanced", "shifted", "bernoulli"]
POLICIES: tuple[Policy, ...] = ("balanced", "shifted", "bernoulli")

SAVED_STAGE_CHUNKS = "places"
"""The name of `stage_chunks` in saved settings, and so in digests: that of the first checkpoints."""

MIN_WINDOW_STEPS = 256
_DRAWN_WINDOWS, _SEARCHED_WINDOWS = 3, 64
_CACHE_BYTES = 2**25
"""A million steps of 128 layers as bits are half of this."""


@dataclass(frozen=True)
class CompetitionSchedule:
    """The table of competitions of a whole job.

    Args:
        num_layers: layers that can compete; they are numbered from 1.
        rate: fraction of the steps after warm-up at which each layer competes, in [0, 1].
        max_active: most layers that compete at one step (A_max).
        policy: `balanced` over the pipeline stages, `shifted` as the authors do it, or `bernoulli`: every layer by
            itself at every step, without a limit.
        stage_chunks: with `balanced`, pipeline stage and model chunk of each layer, in order of depth; none means one
            stage. Other policies do not look at it, and it is then left empty.
        seed: any integer; the same arguments always give the same table.
        warmup_steps: first steps at which nothing competes.
        decay, decay_steps, floor: how the rate falls after warm-up, see `RateCurve`.

    Raises:
        CompeteError: a value out of range, or `rate * num_layers > max_active`, which no table can meet.
    """

    num_layers: int
    rate: float
    max_active: int
    policy: Policy = "shifted"
    stage_chunks: tuple[StageChunk, ...] = ()
    seed: int = 1234
    warmup_steps: int = 0
    decay: Decay = "none"
    decay_steps: int = 0
    floor: float = 0.0
    _windows: OrderedDict[int, NDArray[np.uint8]] = field(
        default_factory=OrderedDict, init=False, repr=False, compare=False
    )

    @classmethod
    def of(cls, config: CompeteConfig, stage_chunks: tuple[StageChunk, ...]) -> "CompetitionSchedule":
        """The schedule of these settings for layers on these stages and chunks, in order of depth."""
        if config.enabled and config.warmup_fraction and not config.warmup_steps:
            raise CompeteError(
                f"{flag_of('warmup_fraction')} {config.warmup_fraction:g} is a fraction of a number of steps: say which, by "
                f"CompeteConfig.of_run(train_steps), or give {flag_of('warmup_steps')} in its place"
            )
        rate, max_active, policy = config.rate, config.max_active_layers, config.policy
        if config.cap_rate:
            max_active = max_active or LEAST_MAX_ACTIVE
            rate = min(rate, max_active / len(stage_chunks))
        if max_active is None:
            max_active = default_max_active(1.0 if policy == "bernoulli" else rate, len(stage_chunks))
        if policy == "auto":
            policy = "balanced" if len({stage for stage, _ in stage_chunks}) > 1 else "shifted"
        return cls(
            num_layers=len(stage_chunks),
            rate=rate,
            max_active=max_active,
            policy=policy,
            stage_chunks=stage_chunks,
            seed=config.seed,
            warmup_steps=config.warmup_steps,
            decay=config.rate_decay,
            decay_steps=config.rate_decay_steps,
            floor=min(config.rate_floor, rate),
        )

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> "CompetitionSchedule":
        """The schedule whose `settings` these are."""
        values = {name: value for name, value in settings.items() if name != SAVED_STAGE_CHUNKS}
        return cls(**values, stage_chunks=tuple((stage, chunk) for stage, chunk in settings[SAVED_STAGE_CHUNKS]))

    def __post_init__(self) -> None:
        if self.num_layers < 1:
            raise CompeteError(f"a schedule needs at least one layer that can compete, got {self.num_layers}")
        if self.max_active < 1:
            raise CompeteError(f"{flag_of('max_active_layers')} {self.max_active} is out of range: give 1 or more")
        if self.policy not in POLICIES:
            raise CompeteError(f"{flag_of('policy')} {self.policy} is unknown: choose from {', '.join(POLICIES)}")
        stage_chunks = (self.stage_chunks or ((0, 0),) * self.num_layers) if self.policy == "balanced" else ()
        if stage_chunks and len(stage_chunks) != self.num_layers:
            raise CompeteError(
                f"stage_chunks has {len(stage_chunks)} entries for {self.num_layers} layers: give each layer's stage and chunk"
            )
        object.__setattr__(self, "stage_chunks", stage_chunks)
        self.curve  # noqa: B018  a rate out of range is an error here, not at the first step
        if self.rate * self.num_layers > self.max_active * (1 + 1e-9):
            raise CompeteError(self._impossible())
        if self.policy == "bernoulli" and self.max_active < self.num_layers:
            raise CompeteError(
                f"{flag_of('policy')} bernoulli keeps no limit, and {flag_of('max_active_layers')} {self.max_active} "
                f"is one for {self.num_layers} layers: raise it to {self.num_layers}, or use balanced or shifted"
            )

    @cached_property
    def curve(self) -> RateCurve:
        """The rate over the steps after warm-up."""
        return RateCurve(self.rate, self.decay, self.decay_steps, self.floor)

    def _impossible(self) -> str:
        wanted = self.rate * self.num_layers
        fits = math.floor(self.max_active / self.num_layers * 1e4) / 1e4
        return (
            f"{flag_of('max_active_layers')} {self.max_active} is below rate * layers = {self.rate:g} * "
            f"{self.num_layers} = {wanted:g}: raise it to {math.ceil(wanted - 1e-9)} or lower "
            f"{flag_of('rate')} to {fits:g} ({flag_of('cap_rate')} takes the highest rate that fits)"
        )

    @property
    def window_steps(self) -> int:
        """Steps in a window: a multiple of the layers, so that whole rounds of them can fill it to the brim."""
        return self.num_layers * math.ceil(MIN_WINDOW_STEPS / self.num_layers)

    def is_active(self, step: int, layer_number: int) -> bool:
        """Whether `layer_number` (from 1) competes at `step` (iterations from 0)."""
        if not 1 <= layer_number <= self.num_layers:
            raise IndexError(f"layer_number {layer_number} is not in 1..{self.num_layers}")
        since_warmup = step - self.warmup_steps
        if since_warmup < 0:
            return False
        window, offset = divmod(since_warmup, self.window_steps)
        byte, bit = divmod(layer_number - 1, 8)
        return bool(self._window(window)[offset, byte] >> (7 - bit) & 1)

    def table(self, start: int, stop: int) -> NDArray[np.bool_]:
        """The competitions of steps start..stop-1 as bools [stop - start, num_layers]."""
        if not 0 <= start <= stop:
            raise IndexError(f"steps {start}..{stop} are not a range that starts at 0 or later")
        table = np.zeros((stop - start, self.num_layers), dtype=bool)
        step = max(start, self.warmup_steps)
        while step < stop:
            window, offset = divmod(step - self.warmup_steps, self.window_steps)
            steps = min(self.window_steps - offset, stop - step)
            bits = self._window(window)[offset : offset + steps]
            table[step - start : step - start + steps] = np.unpackbits(bits, axis=1, count=self.num_layers)
            step += steps
        return table

    def describe(self) -> str:
        """The schedule in one line."""
        stages = len({stage for stage, _ in self.stage_chunks})
        policy = f"balanced over {stages} stages" if stages > 1 else self.policy
        falls = (
            f", falling ({self.decay}) to {self.floor:g} over {self.decay_steps} steps" if self.decay != "none" else ""
        )
        after = f" after {self.warmup_steps} steps" if self.warmup_steps else ""
        return (
            f"{policy}, rate {self.rate:g}{falls}{after}: {self.rate * self.num_layers:.3g} of {self.num_layers} layers "
            f"a step on average, at most {self.max_active}"
        )

    def settings(self) -> dict[str, Any]:
        """Everything that the table depends on, as plain values, as checkpoints hold it."""
        names = {item.name: item.name for item in fields(self) if item.init} | {"stage_chunks": SAVED_STAGE_CHUNKS}
        values = {saved: getattr(self, name) for name, saved in names.items()}
        return {**values, SAVED_STAGE_CHUNKS: [list(stage_chunk) for stage_chunk in self.stage_chunks]}

    def digest(self) -> str:
        """SHA-256 of the settings and of what is drawn from them."""
        return hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode() + self.drawn().encode()).hexdigest()

    def drawn(self) -> str:
        """SHA-256 of a few windows, so that another way of drawing shows where the settings are the same: numpy does
        not promise that a version draws as another one does.

        They are the first that hold competitions; at a low rate or late in a decay most windows may hold none.
        """
        digest = hashlib.sha256()
        for window in itertools.islice((w for w in range(_SEARCHED_WINDOWS) if self._window(w).any()), _DRAWN_WINDOWS):
            digest.update(window.to_bytes(8, "little") + self._window(window).tobytes())
        return digest.hexdigest()

    def _window(self, window: int) -> NDArray[np.uint8]:
        """One window's table as bits, [window_steps, ceil(num_layers / 8)]; the latest ones are kept."""
        bits = self._windows.get(window)
        if bits is None:
            bits = self._windows[window] = np.packbits(self._draw(window), axis=1)
            if len(self._windows) * bits.nbytes > _CACHE_BYTES:
                self._windows.popitem(last=False)
        return bits

    def _draw(self, window: int) -> NDArray[np.bool_]:
        random = np.random.Generator(np.random.Philox(key=np.array([self.seed % 2**64, window], dtype=np.uint64)))
        steps = np.arange(window * self.window_steps, (window + 1) * self.window_steps + 1)
        if self.policy == "bernoulli":
            return (
                random.random((self.window_steps, self.num_layers)) < np.diff(self.curve.competitions(steps))[:, None]
            )
        first, last = np.floor(self.curve.competitions(steps[[0, -1]]) + 1e-9).astype(int)
        rounds = int(last - first)
        if self.policy == "balanced":
            return self._balanced.draw(random, rounds)
        return draw_shifted(random, self.window_steps, self.num_layers, rounds, self.max_active)

    @cached_property
    def _balanced(self) -> BalancedDraw:
        return BalancedDraw(self.window_steps, self.max_active, self.stage_chunks)
