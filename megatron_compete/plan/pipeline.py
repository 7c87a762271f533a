"""Seconds that the pipeline of a step takes: an event simulation of Megatron's schedules, many steps at once.

Every stage works through its program (`stage_program.py`). A pass begins when the stage is free and has waited for what
it needs. A transfer begins when both ends have posted it, as NCCL's do, and takes the same time everywhere; it holds a
stage up only where the program waits for it. All times are then maxima and sums of durations, in an order that the
durations do not change: it is found once, and each maximum or sum done for all steps together.

Legend: N steps, P stages, V model chunks of a stage. All microbatches of a step take the same time on a chunk.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_compete.plan.stage_program import Operation, PipelineShape

BLOCK_STEPS = 4096
"""Steps simulated together: enough to make the interpreter's share small, few enough for a processor's cache."""

TRANSFER = -(2**31)
"""In compiled code, the place of a transfer's seconds."""


def simulate(
    shape: PipelineShape, forward_NPV: NDArray[np.float64], backward_NPV: NDArray[np.float64], transfer: float
) -> NDArray[np.float64]:
    """Seconds from the first forward pass to the end of the last backward pass.

    Args:
        shape: the schedule.
        forward_NPV: seconds of one microbatch's forward pass through each chunk, for each step.
        backward_NPV: the same of its backward pass.
        transfer: seconds that activations or gradients of one microbatch take from a stage to the next.
    Returns:
        Seconds of each step, [N].
    """
    steps = len(forward_NPV)
    if shape.stages == 1:
        return np.asarray(shape.microbatches * (forward_NPV + backward_NPV).sum(axis=(1, 2)), dtype=np.float64)
    durations = np.concatenate([forward_NPV.reshape(steps, -1), backward_NPV.reshape(steps, -1)], axis=1).T
    plan = compile_schedule(shape, with_transfers=transfer > 0)
    seconds = np.empty(steps)
    for start in range(0, steps, BLOCK_STEPS):
        block = slice(start, min(start + BLOCK_STEPS, steps))
        seconds[block] = plan.run(np.ascontiguousarray(durations[:, block]), transfer)
    return seconds


@dataclass(frozen=True)
class CompiledSchedule:
    """A schedule as a sequence of maxima and sums over registers, each of which holds a time for every step."""

    registers: int
    code: tuple[tuple[int, int, int], ...]
    """(output, first, second): registers. A negative second register is duration -second - 1 to add, or, where it is
    `TRANSFER`, a transfer's; otherwise the output is the later of the two."""
    ends: tuple[int, ...]
    """Registers in which the stages' last times are."""

    def run(self, durations: NDArray[np.float64], transfer: float) -> NDArray[np.float64]:
        """Seconds [N] of steps with these durations [2 * P * V, N]: of forward passes, then of backward passes."""
        times = np.zeros((self.registers, durations.shape[1]))
        rows, added, constant = list(times), list(durations), np.float64(transfer)
        add, later = np.add, np.maximum
        for output, first, second in self.code:
            if second >= 0:
                later(rows[first], rows[second], out=rows[output])
            else:
                add(rows[first], constant if second == TRANSFER else added[-second - 1], out=rows[output])
        return times[list(self.ends)].max(axis=0)


@lru_cache(maxsize=8)
def compile_schedule(shape: PipelineShape, with_transfers: bool = True) -> CompiledSchedule:
    """Order in which a schedule's times can be computed; without transfers if those take no time.

    Raises:
        RuntimeError: the stages wait for each other in a circle (no schedule of Megatron's does).
    """
    network = _Network(shape, with_transfers)
    network.connect()
    return _allocate(network.code, [stage.clock for stage in network.stages])


@dataclass
class _Stage:
    program: Iterator[Operation]
    clock: int = 0
    """Value that is the time at which the stage is free; value 0 is time 0."""
    blocked: Operation | None = None
    posted: dict[tuple[Any, int], int] = field(default_factory=dict)
    """The clock at which each transfer was posted."""


class _Network:
    """The stages' programs, worked through side by side; times are values with a number, computed once each."""

    def __init__(self, shape: PipelineShape, with_transfers: bool) -> None:
        self.shape, self.with_transfers = shape, with_transfers
        self.stages = [_Stage(iter(shape.program(stage))) for stage in range(shape.stages)]
        self.code: list[tuple[int, int, int]] = []
        self._post_of: dict[tuple[bool, int, int], int] = {}
        self._end_of: dict[tuple[bool, int, int], int] = {}
        self._waiting: defaultdict[tuple[bool, int, int], list[int]] = defaultdict(list)

    def connect(self) -> None:
        """Work through all programs."""
        self._ready = list(range(self.shape.stages))
        while self._ready:
            self._advance(self._ready.pop())
        if any(stage.blocked for stage in self.stages):
            raise RuntimeError(f"the stages of {self.shape} wait for each other in a circle")

    def _advance(self, number: int) -> None:
        """Work through a stage's program up to a wait for what another stage has not posted."""
        stage = self.stages[number]
        while (operation := stage.blocked or next(stage.program, None)) is not None:
            stage.blocked = None
            if operation.action in ("forward", "backward"):
                stage.clock = self._value(stage.clock, self._duration(operation, number))
                continue
            transfer = self._transfer(operation, number)
            if operation.action == "post":
                stage.posted[operation.channel, operation.number] = stage.clock
                self._post(transfer, stage.clock)
            elif transfer not in self._end_of:
                stage.blocked = operation
                self._waiting[transfer].append(number)
                return
            else:
                posted = stage.posted.pop((operation.channel, operation.number))
                stage.clock = self._later(stage.clock, self._end_of[transfer], known=posted)

    def _duration(self, operation: Operation, stage: int) -> int:
        """Register of a pass's duration, as `CompiledSchedule.code` counts them."""
        row = stage * self.shape.chunks + operation.chunk
        if operation.action == "backward":
            row += self.shape.stages * self.shape.chunks
        return -row - 1

    def _transfer(self, operation: Operation, stage: int) -> tuple[bool, int, int]:
        """(whether activations, sending stage, number): the same for both ends."""
        match operation.channel:
            case "send next":
                return True, stage, operation.number
            case "receive previous":
                return True, (stage - 1) % self.shape.stages, operation.number
            case "send previous":
                return False, stage, operation.number
            case _:
                return False, (stage + 1) % self.shape.stages, operation.number

    def _post(self, transfer: tuple[bool, int, int], clock: int) -> None:
        if transfer not in self._post_of:
            self._post_of[transfer] = clock
            return
        begin = self._later(self._post_of.pop(transfer), clock)
        self._end_of[transfer] = self._value(begin, TRANSFER) if self.with_transfers else begin
        self._ready += self._waiting.pop(transfer, [])

    def _later(self, first: int, second: int, known: int | None = None) -> int:
        """The later of two times; `known` is one that `second` is not earlier than."""
        if first == second or known == first:
            return second
        return self._value(first, second)

    def _value(self, first: int, second: int) -> int:
        self.code.append((len(self.code) + 1, first, second))
        return len(self.code)


def _allocate(code: list[tuple[int, int, int]], ends: list[int]) -> CompiledSchedule:
    """Put values into registers; a value's register is free after its last use."""
    last_use = {value: len(code) for value in ends}
    for position in range(len(code) - 1, -1, -1):
        for value in code[position][1:]:
            if value >= 0:
                last_use.setdefault(value, position)
    register_of, free, registers = {0: 0}, [], 1
    allocated = []
    for position, (value, first, second) in enumerate(code):
        inputs = [register_of[first], register_of[second] if second >= 0 else second]
        for used in {first, second}:
            if used > 0 and last_use[used] == position:
                free.append(register_of.pop(used))
        if not free:
            free.append(registers)
            registers += 1
        register_of[value] = free.pop()
        last_use.setdefault(value, len(code))
        allocated.append((register_of[value], inputs[0], inputs[1]))
    return CompiledSchedule(registers, tuple(allocated), tuple(register_of[value] for value in ends))
