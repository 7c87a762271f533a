"""Settings within a budget."""

import dataclasses

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.plan.budget import RATES, fits, parse_budget
from megatron_compete.plan.overhead import mean_step
from megatron_compete.plan.stage_program import PipelineShape
from megatron_compete.plan.times import added_by_competition
from megatron_compete.schedule import CompetitionSchedule
from tests.plan.planned import planned


@pytest.mark.parametrize(("text", "percent"), [("5%", 5.0), ("0.05", 5.0), (" 7.5% ", 7.5)])
def test_a_budget_is_a_percentage_or_a_share(text: str, percent: float) -> None:
    assert parse_budget(text) == pytest.approx(percent)


@pytest.mark.parametrize("text", ["", "five", "0", "-1%", "nan", "inf%", "5"])
def test_whatever_else_is_refused(text: str) -> None:
    with pytest.raises(CompeteError, match=r"^--budget .* is no overhead: give a percentage such as 5%"):
        parse_budget(text)


def test_settings_fit_and_a_little_more_would_not() -> None:
    plan, _ = planned()
    budget = 5.0
    found = fits(plan.job, plan.hardware, plan.times, budget)
    assert {fit.kind for fit in found} == {"utility", "response"}
    shares = [fit.competing_percent for fit in found]
    assert shares == sorted(shares, reverse=True)
    for fit in found:
        assert fit.rate in RATES and 0 < fit.overhead_percent <= budget
        assert simulated(plan, fit, fit.token_fraction) == pytest.approx(fit.overhead_percent)
        if fit.token_fraction < 1:  # samples are whole tokens, so that the next step up may be a larger one
            assert simulated(plan, fit, min(1.0, 1.2 * fit.token_fraction)) > budget * 0.98


def simulated(plan, fit, fraction):  # type: ignore[no-untyped-def]
    """Overhead of a setting, with another fraction."""
    own = dataclasses.replace(plan.job.compete, max_active_layers=None)
    if fit.kind != own.kind:
        own = type(own)(kind=fit.kind, policy=own.policy, seed=own.seed)
    config = dataclasses.replace(own, rate=fit.rate, token_fraction=fraction)
    schedule = CompetitionSchedule.of(config, plan.job.stage_chunks)
    times = added_by_competition(plan.times, dataclasses.replace(plan.job, compete=config), plan.hardware)
    shape = PipelineShape.of(plan.job.transformer, plan.job.microbatches)
    return mean_step(schedule, times, shape, most_steps=500).overhead_percent


def test_a_job_without_competition_has_no_settings() -> None:
    plan, _ = planned("--router", "topk")
    with pytest.raises(CompeteError, match="no layer competes"):
        fits(plan.job, plan.hardware, plan.times, 5.0)
