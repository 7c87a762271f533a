"""Which settings of competition fit an overhead: `megatron-compete plan --budget 5%`.

For either kind and several rates the largest fraction of the tokens whose mean step is within the budget, on the job's own
layout and hardware. More competing tokens are more that the router can learn from at that price.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig
from megatron_compete.moe.validation import check_supported
from megatron_compete.plan.hardware import Hardware
from megatron_compete.plan.job import Job
from megatron_compete.plan.overhead import mean_step
from megatron_compete.plan.stage_program import PipelineShape
from megatron_compete.plan.times import PipelineTimes, added_by_competition
from megatron_compete.schedule import CompetitionSchedule

KINDS: tuple[Literal["utility", "response"], ...] = ("utility", "response")

RATES = (1.0, 0.3, 0.1, 0.07, 0.03, 0.01)
"""Rates that are tried; of each the largest fraction is found."""

LEAST_FRACTION = 1e-3
"""Smaller samples are not looked for."""

STEPS = 500
"""Simulated for each setting, rounded up to whole windows of the schedule."""

_HALVINGS = 10


@dataclass(frozen=True)
class Fit:
    """Settings within a budget."""

    kind: str
    rate: float
    token_fraction: float
    max_active_layers: int
    """A_max, as it is where it is left out."""
    overhead_percent: float
    """Of the mean step, above one without competition."""

    @property
    def competing_percent(self) -> float:
        """Share of all tokens and layers that competes, over the steps."""
        return 100 * self.rate * self.token_fraction


def parse_budget(text: str) -> float:
    """`5%` or `0.05` as percent.

    Raises:
        CompeteError: anything else, such as a 5 of which nobody knows whether it is 5% or 500%, or nothing that could be
            spent.
    """
    number = text.strip().removesuffix("%")
    try:
        percent = float(number) * (1 if text.strip().endswith("%") else 100)
    except ValueError:
        percent = math.nan
    if not 0 < percent < math.inf or (percent > 100 and not text.strip().endswith("%")):
        raise CompeteError(f"--budget {text} is no overhead: give a percentage such as 5%, or a share such as 0.05")
    return percent


def fits(
    job: Job,
    hardware: Hardware,
    times: PipelineTimes,
    budget_percent: float,
    progress: Callable[[str], None] = lambda message: None,
) -> tuple[Fit, ...]:
    """The settings, most competing tokens first; those that this model cannot train with are left out.

    Args:
        times: of the job's parts at a normal step, `plan.times.pipeline_times`.
        budget_percent: most overhead of the mean step.
    Raises:
        CompeteError: no layer of the job competes.
    """
    if job.compete is None or not job.competes:
        raise CompeteError("--budget looks for settings of competition, and no layer competes: leave out --router topk and --compete-rate 0")  # fmt: skip
    found = []
    for kind in KINDS:
        for rate in RATES:
            progress(f"settings within {budget_percent:g}%: {kind}, rate {rate:g}")
            fit = _largest(job, hardware, times, _settings(job.compete, kind, rate), budget_percent)
            if fit is not None:
                found.append(fit)
    return tuple(sorted(found, key=lambda fit: (-fit.competing_percent, fit.overhead_percent)))


def _settings(own: CompeteConfig, kind: Literal["utility", "response"], rate: float) -> CompeteConfig:
    """The job's settings where they are of this kind, else that kind's defaults; A_max follows from the rate."""
    if kind == own.kind:
        return dataclasses.replace(own, rate=rate, max_active_layers=None, cap_rate=False, warmup_steps=0, warmup_fraction=0.0, rate_decay="none", rate_decay_steps=0, rate_floor=0.0)  # fmt: skip
    return CompeteConfig(
        kind=kind, rate=rate, policy=own.policy, seed=own.seed, score_chunk_tokens=own.score_chunk_tokens,
        score_kernel=own.score_kernel,
    )  # fmt: skip


def _largest(job: Job, hardware: Hardware, times: PipelineTimes, config: CompeteConfig, budget: float) -> Fit | None:
    """The largest fraction within the budget, to two digits; None where there is none or the model is refused."""
    try:
        for part in job.parts:
            if part.transformer.num_moe_experts:
                check_supported(part.transformer, config)
        schedule = CompetitionSchedule.of(config, job.stage_chunks)
    except CompeteError:
        return None
    shape = PipelineShape.of(job.transformer, job.microbatches)

    def overhead(fraction: float) -> float:
        sampled = dataclasses.replace(job, compete=dataclasses.replace(config, token_fraction=fraction))
        return mean_step(schedule, added_by_competition(times, sampled, hardware), shape, STEPS).overhead_percent

    fraction = _bisect(lambda value: overhead(value) <= budget)
    if fraction is None:
        return None
    return Fit(config.kind, config.rate, fraction, schedule.max_active, overhead(fraction))


def _bisect(within: Callable[[float], bool]) -> float | None:
    """The largest fraction up to 1 that is within, to two digits, or None."""
    if within(1.0):
        return 1.0
    if not within(LEAST_FRACTION):
        return None
    low, high = math.log(LEAST_FRACTION), 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if within(math.exp(middle)) else (low, middle)
    digit = 10.0 ** (math.floor(low / math.log(10)) - 1)
    return round(math.floor(math.exp(low) / digit + 1e-9) * digit, 6)
