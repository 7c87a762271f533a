"""What competition costs per step under each policy and each A_max, by simulating thousands of steps.

A schedule's real table says which layers compete at a step; their extra seconds go to the model chunks they lie on, and
the pipeline simulation makes a step's seconds of that. Steps with the same number of competing layers of each kind on
every chunk take the same time and are simulated once, whichever policy they come from.

Legend: N steps, L layers that can compete, K kinds of these by the seconds that competing adds (one in a decoder, others in
a vision tower and a projector), P pipeline stages, V model chunks of a stage, C = K * P * V.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from megatron_compete.common.errors import CompeteError
from megatron_compete.plan.pipeline import compile_schedule, simulate
from megatron_compete.plan.stage_program import PipelineShape
from megatron_compete.plan.times import PipelineTimes
from megatron_compete.schedule import CompetitionSchedule
from megatron_compete.schedule.table import POLICIES, Policy

MOST_STEPS = 4000
FEWEST_STEPS = 1000
"""Bounds of the steps simulated for each policy and A_max; rounded up to whole windows of the schedule."""

WORK = 15_000_000_000
"""Most operations of all simulated steps together (some seconds); fewer steps are simulated where it would be more."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class PolicyOutcome:
    """Steps under one policy and A_max. Seconds are those of whole steps, the optimizer's included."""

    policy: Policy
    max_active: int
    infeasible: str | None = None
    """Why no schedule has this A_max at this rate; the numbers below are then nan or 0."""
    seconds: NDArray[np.float64] = field(default_factory=lambda: np.full(1, np.nan), repr=False, compare=False)
    """Each simulated step's, [N]."""
    competing_share: float = np.nan
    """Share of the steps at which any layer competes."""
    mean_seconds: float = np.nan
    p50_seconds: float = np.nan
    p95_seconds: float = np.nan
    max_seconds: float = np.nan
    competing_mean_seconds: float = np.nan
    """Mean over the steps at which any layer competes; nan where none does."""
    overhead_percent: float = np.nan
    """Mean over all steps, above a step without competition."""
    most_layers: int = 0
    """Most layers that compete at one step."""
    most_layers_on_a_stage: int = 0
    """Most layers that compete on one pipeline stage at one step."""


@dataclass(frozen=True)
class Overhead:
    """Every policy at every A_max from 1 to L, at the job's rate."""

    normal_seconds: float
    """A step without competition."""
    rate: float
    steps: int
    """Steps simulated for each policy and A_max."""
    policy: Policy | None
    """The job's own; None where no layer ever competes."""
    max_active: int
    """The job's own A_max, no more than L."""
    outcomes: tuple[PolicyOutcome, ...]

    def of(self, policy: Policy, max_active: int) -> PolicyOutcome:
        """The outcome under one policy and A_max."""
        return next(item for item in self.outcomes if (item.policy, item.max_active) == (policy, max_active))


def simulate_policies(
    schedule: CompetitionSchedule | None,
    times: PipelineTimes,
    shape: PipelineShape,
    progress: Progress = lambda message: None,
    most_steps: int = MOST_STEPS,
) -> Overhead:
    """Simulate every policy and A_max.

    Args:
        schedule: the job's; its rate (at its highest, without warm-up and decay) and seed are used throughout. None:
            no layer competes.
        times: seconds of the job's parts.
        shape: its pipeline schedule.
        progress: is told what happens.
        most_steps: for each policy and A_max.
    """
    if schedule is None:
        normal = float(simulate(shape, times.forward_PV[None], times.backward_PV[None], times.transfer)[0] + times.once)
        return Overhead(normal, rate=0.0, steps=1, policy=None, max_active=0, outcomes=())
    layers = schedule.num_layers
    schedules = {
        (policy, max_active): _schedule(schedule, policy, max_active, times)
        for policy in POLICIES
        for max_active in range(1, layers + 1)
    }
    windows = -(-most_steps // schedule.window_steps)
    progress(f"drawing {windows * schedule.window_steps} steps of {len(schedules)} schedules")
    tables = _Tables(_layers_LC(times))
    draws = {
        setting: tables.add(drawn.table(0, windows * schedule.window_steps))
        for setting, drawn in schedules.items()
        if not isinstance(drawn, str)
    }
    steps = _affordable_steps(tables, shape, times, schedule.window_steps, windows)
    rows_RC, row_of = tables.distinct_rows(steps)
    progress(f"simulating {len(rows_RC)} different steps")
    seconds_R = _step_seconds(rows_RC, times, shape)
    normal = float(seconds_R[0])
    outcomes = tuple(
        PolicyOutcome(*setting, infeasible=drawn)
        if isinstance(drawn, str)
        else _outcome(*setting, seconds_R[row_of[draws[setting]]], rows_RC[row_of[draws[setting]]], normal, shape)
        for setting, drawn in schedules.items()
    )
    return Overhead(normal, schedule.rate, steps, schedule.policy, min(schedule.max_active, layers), outcomes)


@dataclass(frozen=True)
class MeanStep:
    """Seconds of a step without competition, and of the mean step under one schedule."""

    normal_seconds: float
    seconds: float

    @property
    def overhead_percent(self) -> float:
        """Of the mean step, above the other."""
        return 100 * (self.seconds / self.normal_seconds - 1)


def mean_step(
    schedule: CompetitionSchedule, times: PipelineTimes, shape: PipelineShape, most_steps: int = MOST_STEPS
) -> MeanStep:
    """Simulated steps under one schedule after its warm-up."""
    tables = _Tables(_layers_LC(times))
    steps = -(-most_steps // schedule.window_steps) * schedule.window_steps
    drawn = tables.add(schedule.table(schedule.warmup_steps, schedule.warmup_steps + steps))
    rows_RC, row_of = tables.distinct_rows(steps)
    seconds_R = _step_seconds(rows_RC, times, shape)
    return MeanStep(float(seconds_R[0]), float(seconds_R[row_of[drawn]].mean()))


def _schedule(
    schedule: CompetitionSchedule, policy: Policy, max_active: int, times: PipelineTimes
) -> CompetitionSchedule | str:
    """The job's schedule under another policy and A_max, or why there is none."""
    try:
        return dataclasses.replace(
            schedule, policy=policy, max_active=max_active, stage_chunks=times.stage_chunks if policy == "balanced" else (),
            warmup_steps=0, decay="none", decay_steps=0, floor=0.0,
        )  # fmt: skip
    except CompeteError as error:
        return str(error)


class _Tables:
    """Counts of competing layers by kind and chunk, of several schedules; equal tables are kept once.

    Args:
        layers_LC: which kind each layer is of and which chunk it lies on, [L, C] of 0 and 1.
    """

    def __init__(self, layers_LC: NDArray[np.float32]) -> None:
        self.layers_LC = layers_LC
        self.counts: list[NDArray[np.uint8]] = []
        self._number_of: dict[bytes, int] = {}

    def add(self, table_NL: NDArray[np.bool_]) -> int:
        """The number of this table, [N, L]."""
        key = np.packbits(table_NL).tobytes()
        if key not in self._number_of:
            self._number_of[key] = len(self.counts)
            self.counts.append((table_NL.astype(np.float32) @ self.layers_LC).astype(np.uint8))
        return self._number_of[key]

    def distinct_rows(self, steps: int) -> tuple[NDArray[np.uint8], list[NDArray[np.intp]]]:
        """Distinct rows [R, C] of the first `steps` of all tables, no competition the first, and each table's rows."""
        normal = np.zeros((1, self.layers_LC.shape[1]), dtype=np.uint8)
        rows_NC = np.concatenate([normal, *(counts[:steps] for counts in self.counts)])
        as_bytes = rows_NC.view(f"V{rows_NC.shape[1]}").ravel()
        _, first, row_of = np.unique(as_bytes, return_index=True, return_inverse=True)
        return rows_NC[first], np.split(row_of[1:], np.arange(1, len(self.counts)) * steps)


def _layers_LC(times: PipelineTimes) -> NDArray[np.float32]:
    seconds_K2, kind_L = _kinds(times)
    layers_LKPV = np.zeros((len(times.stage_chunks), len(seconds_K2), *times.forward_PV.shape), dtype=np.float32)
    for layer, (kind, (stage, chunk)) in enumerate(zip(kind_L, times.stage_chunks, strict=True)):
        layers_LKPV[layer, kind, stage, chunk] = 1
    return layers_LKPV.reshape(len(layers_LKPV), -1)


def _kinds(times: PipelineTimes) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Seconds that competing adds to a layer's forward and backward pass, of each kind of layers, and each layer's kind."""
    seconds_L2 = np.stack([times.competing_forward_L, times.competing_backward_L], axis=1)
    seconds_K2, kind_L = np.unique(seconds_L2, axis=0, return_inverse=True)
    return seconds_K2, kind_L.ravel()


def _affordable_steps(
    tables: _Tables, shape: PipelineShape, times: PipelineTimes, window_steps: int, windows: int
) -> int:
    """Whole windows, as many as `WORK` allows."""
    operations = 1 if shape.stages == 1 else len(compile_schedule(shape, times.transfer > 0).code)
    fewest = min(windows, -(-FEWEST_STEPS // window_steps))
    while windows > fewest and len(tables.distinct_rows(windows * window_steps)[0]) * operations > WORK:
        windows = max(fewest, windows * 2 // 3)
    return windows * window_steps


def _step_seconds(counts_NC: NDArray[np.uint8], times: PipelineTimes, shape: PipelineShape) -> NDArray[np.float64]:
    """Seconds of steps with these numbers of competing layers of each kind on each chunk, [N, C]."""
    seconds_K2, _ = _kinds(times)
    counts_NKPV = counts_NC.reshape(len(counts_NC), len(seconds_K2), *times.forward_PV.shape)
    added_2NPV = np.einsum("nkpv,kd->dnpv", counts_NKPV, seconds_K2)
    pipeline = simulate(shape, times.forward_PV + added_2NPV[0], times.backward_PV + added_2NPV[1], times.transfer)
    return pipeline + times.once


def _outcome(
    policy: Policy,
    max_active: int,
    seconds_N: NDArray[np.float64],
    counts_NC: NDArray[np.uint8],
    normal: float,
    shape: PipelineShape,
) -> PolicyOutcome:
    competing = counts_NC.any(axis=1)
    p50, p95 = np.percentile(seconds_N, (50, 95), method="inverted_cdf")
    return PolicyOutcome(
        policy,
        max_active,
        seconds=seconds_N,
        competing_share=float(competing.mean()),
        mean_seconds=float(seconds_N.mean()),
        p50_seconds=float(p50),
        p95_seconds=float(p95),
        max_seconds=float(seconds_N.max()),
        competing_mean_seconds=float(seconds_N[competing].mean()) if competing.any() else np.nan,
        overhead_percent=float(100 * (seconds_N.mean() / normal - 1)),
        most_layers=int(counts_NC.sum(axis=1, dtype=np.int64).max()),
        most_layers_on_a_stage=int(
            counts_NC.reshape(len(counts_NC), -1, shape.stages, shape.chunks).sum(axis=(1, 3), dtype=np.int64).max()
        ),
    )
