"""FLOPs by parts against Megatron's count of the whole."""

import pytest

from megatron_compete.plan.flops import (
    layer_flops,
    output_flops,
    scoring_pass_flops,
    step_flops,
)
from megatron_compete.training.flops import scoring_flops
from tests.plan.jobs import job_of

LAYOUTS = {
    "one rank": (1, ""),
    "dense layers and shared experts": (1, "--moe-layer-freq [0,1,1,0] --moe-shared-expert-intermediate-size 16"),
    "grouped queries, relu": (1, "--group-query-attention --num-query-groups 2 --kv-channels 12 --swiglu=false --relu"),
    "everything": (
        32,
        "--tensor-model-parallel-size 2 --sequence-parallel --pipeline-model-parallel-size 2 --context-parallel-size 2 "
        "--expert-model-parallel-size 4 --expert-tensor-parallel-size 2 --global-batch-size 16",
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_parts_add_up_to_megatrons_count(name: str) -> None:
    gpus, flags = LAYOUTS[name]
    job = job_of(flags, gpus)
    forward = output_flops(job)
    for number in range(1, job.transformer.num_layers + 1):
        forward += sum(vars(layer_flops(job, number in job.moe_layers)).values())
    ranks_of_a_stage = job.sizes.world // job.sizes.pp
    assert 3 * forward * job.microbatches * ranks_of_a_stage == pytest.approx(step_flops(job).normal)


@pytest.mark.parametrize("name", LAYOUTS)
def test_scoring_passes_are_the_trainers(name: str) -> None:
    gpus, flags = LAYOUTS[name]
    job = job_of(flags, gpus)
    ranks_of_a_stage = job.sizes.world // job.sizes.pp
    everywhere = scoring_pass_flops(job) * job.microbatches * ranks_of_a_stage
    assert everywhere == pytest.approx(scoring_flops(job.args, job.step_tokens))


def test_a_step_with_competition() -> None:
    step = step_flops(job_of("--compete-rate 0.25"))
    assert step.competing == step.normal + 2 * step.competing_layer
    assert step.mean == step.normal + 0.25 * 4 * step.competing_layer
    without = step_flops(job_of("--router topk"))
    assert without.normal == without.mean == without.competing == step.normal
