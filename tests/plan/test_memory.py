"""Planned bytes of weights, gradients and optimizer against runs of the real trainer; what is in flight, by hand."""

import pytest

from megatron_compete.plan.activations import chunk_activations, competing_activations
from megatron_compete.plan.job import Job, read_job
from megatron_compete.plan.memory import (
    in_flight_microbatches,
    megatron_estimate,
    stage_memory,
)
from megatron_compete.plan.parameters import count_parameters
from megatron_compete.plan.sharding import gradient_bytes
from tests.plan.built import Held, ranks_of, trained
from tests.plan.jobs import (
    DENSE,
    DISTRIBUTED,
    EXPERTS,
    MOE_LAYER,
    STAGES,
    TENSOR,
    TIED,
    WIDER,
    example_recipe,
    job_of,
    recipe_of,
)
from tests.plan.pictures import SEEING, seeing_ranks
from tests.ranks import run_ranks
from tests.shared import Shared

RUNS = {
    "one rank": (1, ""),
    "bf16": (1, "--bf16"),
    "experts": (2, EXPERTS),
    "stages, tied": (2, f"{STAGES} {TIED}"),
    "tensors": (2, TENSOR),
    "distributed optimizer": (2, f"{DISTRIBUTED} {EXPERTS}"),
    "dense, stages, tied": (2, f"{STAGES} {TIED} {DENSE}"),
    "dense, tensors": (2, f"--tensor-model-parallel-size 2 {DENSE}"),
    "dense, bf16, distributed": (2, f"{DISTRIBUTED} --bf16 {DENSE}"),
    "bf16, distributed": (2, f"{DISTRIBUTED} --bf16"),
}


@pytest.mark.parametrize("name", RUNS)
def test_state_is_what_the_trainer_holds(name: str, shared: Shared) -> None:
    ranks, flags = RUNS[name]
    compare(read_job(recipe_of(f"{WIDER} {flags}"), ranks), shared(ranks_of, f"{WIDER} {flags}", ranks))


SEEN = {
    "tower": (1, ""),
    "tower, stages, experts, distributed": (4, f"{STAGES} {EXPERTS} {DISTRIBUTED} --vision-num-experts 4"),
    "frozen tower and decoder": (1, "--freeze-ViT --freeze-LM --experts-in projector"),
}


@pytest.mark.parametrize("name", SEEN)
def test_state_of_a_vision_language_model_is_what_the_trainer_holds(name: str, shared: Shared) -> None:
    """Tower and projector are on the first stage; of what is frozen there is no gradient and no state."""
    ranks, flags = SEEN[name]
    compare(read_job(recipe_of(f"{SEEING} {flags}"), ranks), shared(seeing_ranks, flags, ranks))


def test_state_of_the_demo() -> None:
    recipe = example_recipe("demo", "--tokenizer-type NullTokenizer --vocab-size 2047 --lr-warmup-iters 0")
    compare(read_job(recipe, 4), run_ranks(4, trained, recipe))


def compare(job: Job, ranks: list[Held]) -> None:
    """Every rank's state to the byte; a shard at the end of a buffer has padding that has no state."""
    parameters = count_parameters(job)
    planned = stage_memory(job, parameters)
    for held in ranks:
        stage = planned[held.pipeline_rank]
        assert parameters.on_rank(stage.stage, expert=False) == held.dense_parameters
        assert parameters.on_rank(stage.stage, expert=True) == held.expert_parameters
        assert stage.weights == held.weight_bytes
        assert stage.gradients == held.gradient_bytes
        padding = 0.01 * stage.optimizer if job.args.use_distributed_optimizer else 0.0
        assert stage.optimizer == pytest.approx(held.optimizer_bytes, rel=0, abs=padding)


def test_gradients_in_bf16() -> None:
    assert gradient_bytes(job_of("--bf16")) == 4
    assert gradient_bytes(job_of("--bf16 --grad-reduce-in-bf16")) == 2


def test_microbatches_in_flight() -> None:
    """1F1B: as many as stages from here to the end; interleaved: the warm-up's and one more, chunk by chunk."""
    stages = "--pipeline-model-parallel-size 4 --num-layers 16 --global-batch-size 16 --router topk"
    plain, chunks = job_of(stages, 4), job_of(f"{stages} --num-virtual-stages-per-pipeline-rank 2", 4)
    assert [in_flight_microbatches(plain, stage) for stage in range(4)] == [(4,), (3,), (2,), (1,)]
    assert [in_flight_microbatches(chunks, stage) for stage in range(4)] == [(7, 4), (5, 4), (4, 3), (4, 1)]
    few = job_of(f"{stages} --global-batch-size 4", 4)
    assert in_flight_microbatches(few, 0) == (2,)
    assert in_flight_microbatches(job_of("--global-batch-size 8"), 0) == (1,)


def test_activations_are_those_in_flight() -> None:
    job = job_of("--pipeline-model-parallel-size 2 --global-batch-size 16", 2)
    first, last = stage_memory(job, count_parameters(job))
    assert (
        first.activations == 2 * last.activations == 2 * chunk_activations(job, (MOE_LAYER, MOE_LAYER)).per_microbatch
    )
    assert first.output == 0 < last.output


def test_competition_takes_the_fullest_step_of_the_schedule() -> None:
    """On one stage two layers compete at a time; balanced over two stages one on each, each with its microbatches."""
    layer = competing_activations(job_of()).per_microbatch
    (one,) = stage_memory(job_of(), count_parameters(job_of()))
    assert one.competition == 2 * layer
    job = job_of("--pipeline-model-parallel-size 2 --compete-policy balanced --global-batch-size 16", 2)
    stages = stage_memory(job, count_parameters(job))
    assert [stage.competition for stage in stages] == [2 * layer, layer]
    assert all(stage.competing == stage.normal + stage.competition + stage.scoring for stage in stages)
    plain = job_of("--router topk")
    (none,) = stage_memory(plain, count_parameters(plain))
    assert none.competition == none.scoring == 0.0


def test_megatrons_own_estimate_agrees_where_it_applies() -> None:
    """bf16 with fp32 gradients, one stage."""
    job = job_of("--bf16")
    (stage,) = stage_memory(job, count_parameters(job))
    assert megatron_estimate(job)[0] == stage.state
    before = dict(vars(job.args))
    megatron_estimate(job)
    assert vars(job.args) == before
