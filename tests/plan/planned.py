"""A small planned job for the tests of what the user sees."""

import functools
from pathlib import Path

from megatron_compete.launch.recipe import read_recipe
from megatron_compete.plan.hardware import preset
from megatron_compete.plan.job import read_job
from megatron_compete.plan.job_plan import JobPlan, plan_job
from megatron_compete.plan.overhead import Overhead, simulate_policies
from megatron_compete.plan.stage_program import PipelineShape
from tests.plan.jobs import VISION, job_of

ROOT = Path(__file__).resolve().parent.parent.parent


@functools.cache
def planned(*overrides: str) -> tuple[JobPlan, Overhead]:
    """The demo's recipe with 16 layers on 8 GPUs, PP=4 x VP=2, and some steps of it."""
    recipe = read_recipe(ROOT / "examples/demo.yaml")
    recipe.override(
        [
            "--num-layers", "16", "--pipeline-model-parallel-size", "4", "--num-virtual-stages-per-pipeline-rank", "2",
            "--vocab-size", "2000", "--global-batch-size", "64", "--compete-rate", "0.125", "--bf16", *overrides,
        ]
    )  # fmt: skip
    job = read_job(recipe, gpus=8)
    plan = plan_job(job, preset("h100"))
    shape = PipelineShape.of(job.transformer, job.microbatches)
    return plan, simulate_policies(job.schedule, plan.times, shape, most_steps=300)


@functools.cache
def planned_with_tower() -> tuple[JobPlan, Overhead]:
    """A tower of three layers and a projector with experts before a dense decoder on two stages, and some steps of it."""
    job = job_of(f"{VISION} --pipeline-model-parallel-size 2 --global-batch-size 16 --bf16", 2)
    plan = plan_job(job, preset("h100"))
    shape = PipelineShape.of(job.transformer, job.microbatches)
    return plan, simulate_policies(job.schedule, plan.times, shape, most_steps=100)


DENSE = ("--router", "topk", "--num-experts=false", "--moe-ffn-hidden-size=false", "--expert-model-parallel-size", "1")
"""Overrides that leave no experts."""
