"""Shipped recipes by plan: all that ship, and what a sample at every step costs a deep pipeline."""

import pytest

from benchmarks.planned_overhead import EXAMPLES, RECIPES, by_sample, by_steps, overhead, planned


def test_every_recipe_of_a_real_size_is_priced() -> None:
    """Of language models; a vision-language model's own plan says what its tower costs."""
    jobs = {path.stem for path in EXAMPLES.glob("*.yaml") if "\n  train-iters:" in path.read_text()}
    assert {name for name in jobs if not name.startswith("vlm_")} - {"demo"} == set(RECIPES)


def test_a_sample_at_every_step_costs_235b_its_work_where_all_tokens_at_some_cost_twice_that() -> None:
    """The same number of competing tokens in a pipeline of PP 8 x VP 4."""
    plan = planned("moe_235b_a22b", "h100")
    sample, steps = overhead(plan, by_sample(0.04)), overhead(plan, by_steps(0.04))
    assert sample.even == pytest.approx(steps.even, rel=0.01) and sample.flops == pytest.approx(steps.flops)
    assert sample.simulated <= 1.15 * min(sample.even, sample.flops)
    assert steps.simulated > 2 * steps.even
