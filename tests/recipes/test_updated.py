"""Public recipes word for word: taken and priced, or refused as Megatron refuses them, with the way out that works."""

from pathlib import Path

import pytest

from megatron_compete.plan.hardware import preset
from megatron_compete.plan.job import read_job
from megatron_compete.plan.job_plan import plan_job
from megatron_compete.plan.overhead import simulate_policies
from megatron_compete.plan.stage_program import PipelineShape
from tests.recipes.shrink import PUBLIC
from tests.recipes.updated import updated

WORD_FOR_WORD = {"run-dsv3-b200.1", "run-dsv3-h100.1", "run-dsv3-h100.4", "run-mixtral.1"}
"""Recipes that carry nothing that megatron-core 0.19.2 refuses."""


COVERING = {"run-dsv3-h100.1", "run-kimi-gb200.1", "run-qnext.1"}
"""What nothing is refused of, and what most is."""

RECIPES = [
    pytest.param(path, id=path.stem, marks=() if path.stem in COVERING else pytest.mark.slow)
    for path in sorted(PUBLIC.glob("*.yaml"))
]


@pytest.mark.parametrize("path", RECIPES)
def test_it_is_taken_and_priced(path: Path) -> None:
    recipe, refusals = updated(path)
    assert (path.stem in WORD_FOR_WORD) == (not refusals)
    job = read_job(recipe)
    plan = plan_job(job, preset("h100"))
    assert job.schedule is not None
    simulated = simulate_policies(job.schedule, plan.times, PipelineShape.of(job.transformer, job.microbatches))
    assert simulated.policy is not None
    own = simulated.of(simulated.policy, simulated.max_active)
    assert own.infeasible is None and 0 < own.overhead_percent < 100
    assert all(stage.competing > stage.normal > 0 for stage in plan.memory)
