"""How planned times follow from the hardware and the flags; no absolute time is claimed."""

from dataclasses import replace

import numpy as np
import pytest

from megatron_compete.plan.flops import layer_flops, step_flops
from megatron_compete.plan.hardware import Hardware, preset
from megatron_compete.plan.parameters import count_parameters
from megatron_compete.plan.times import PipelineTimes, pipeline_times
from tests.plan.jobs import DENSE, DENSE_LAYER, MOE_LAYER, VISION, example, job_of

COMPUTE_ONLY = replace(
    preset("h100"),
    memory_bandwidth=1e30, link_bandwidth=1e30, network_bandwidth=1e30, kernel_seconds=0.0, gemm_efficiency=0.5,
    attention_efficiency=0.5, expert_efficiency=0.5, narrow_expert_efficiency=0.5,
)  # fmt: skip
"""A machine on which only operations take time, at half its peak."""


def times_of(name: str, flags: str = "", hardware: Hardware = COMPUTE_ONLY) -> PipelineTimes:
    job = example(name, flags)
    return pipeline_times(job, hardware, count_parameters(job))


def test_compute_alone_is_operations_over_the_rate() -> None:
    """Summed over ranks and microbatches, forward and backward make Megatron's count (attention's backward beyond it)."""
    job = example("moe_235b_a22b")
    times = pipeline_times(job, COMPUTE_ONLY, count_parameters(job))
    seconds = float((times.forward_PV + times.backward_PV).sum()) * job.microbatches
    attention = 94 * layer_flops(job, MOE_LAYER).core * job.microbatches
    flops = step_flops(job).normal / (job.sizes.world / job.sizes.pp) + 0.5 * attention
    assert seconds == pytest.approx(flops / (0.5 * COMPUTE_ONLY.bf16_flops))


def test_a_dense_models_operations_over_the_rate() -> None:
    job = job_of(f"{DENSE} --bf16 --tensor-model-parallel-size 2 --pipeline-model-parallel-size 2", 4)
    times = pipeline_times(job, COMPUTE_ONLY, count_parameters(job))
    seconds = float((times.forward_PV + times.backward_PV).sum()) * job.microbatches
    attention = 4 * layer_flops(job, DENSE_LAYER).core * job.microbatches
    flops = step_flops(job).normal / (job.sizes.world / job.sizes.pp) + 0.5 * attention
    assert seconds == pytest.approx(flops / (0.5 * COMPUTE_ONLY.bf16_flops))


def test_a_competing_layer_alone_is_its_scoring_pass() -> None:
    paper = "--compete-preset paper"
    job = example("moe_30b_a3b", paper)
    times = pipeline_times(job, COMPUTE_ONLY, count_parameters(job))
    flops = step_flops(job).competing_layer / (job.sizes.world / job.sizes.pp) / job.microbatches
    assert times.competing_forward_L == pytest.approx(np.full(48, flops / (0.5 * COMPUTE_ONLY.bf16_flops)))
    every = times_of("moe_30b_a3b", f"{paper} --compete-response-gradients all --no-gradient-accumulation-fusion")
    assert every.competing_backward_L == pytest.approx(3 * times.competing_forward_L)
    utility = times_of("moe_30b_a3b", f"{paper} --compete-kind utility")
    assert not utility.competing_forward_L.any()
    assert utility.competing_backward_L == pytest.approx(times.competing_forward_L)
    sampled = times_of("moe_30b_a3b", f"{paper} --compete-token-fraction 0.25")
    assert sampled.competing_forward_L == pytest.approx(0.25 * times.competing_forward_L)


def test_shape_and_places() -> None:
    times = times_of("moe_235b_a22b", hardware=preset("h100"))
    assert times.forward_PV.shape == times.backward_PV.shape == (8, 4)
    assert len(times.stage_chunks) == 94 and times.stage_chunks[:3] == ((0, 0), (0, 0), (1, 0))
    assert times.microbatches == 64 and times.group_size == 8
    layers = np.full((8, 4), 3)
    layers[0, 0] = layers[7, 3] = 2  # embedding and loss count as a layer
    counted = np.zeros((8, 4), int)
    for place in times.stage_chunks:
        counted[place] += 1
    assert (counted == layers).all()
    assert times.forward_PV[0, 0] == pytest.approx(2 / 3 * times.forward_PV[1, 0])


@pytest.mark.parametrize("name", ["moe_30b_a3b", "moe_235b_a22b"])
def test_recomputing_all_runs_the_forward_pass_again(name: str) -> None:
    once = times_of(name)
    again = times_of(name, "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1")
    middle = (1 if name == "moe_235b_a22b" else 0, 1)
    assert again.backward_PV[middle] == pytest.approx(once.backward_PV[middle] + once.forward_PV[middle])


def test_flags_hide_communication() -> None:
    """Synchronisation of gradients and parameters, and tensor parallel collectives, behind computation."""
    hardware = preset("h100")
    hidden = times_of("moe_235b_a22b", hardware=hardware)
    shown = times_of("moe_235b_a22b", "--overlap-grad-reduce=false --overlap-param-gather=false", hardware)
    assert shown.once > hidden.once
    tensors = times_of("moe_235b_a22b", "--tp-comm-overlap", hardware)
    assert tensors.forward_PV[1, 1] < hidden.forward_PV[1, 1]


def test_slower_parts_take_longer() -> None:
    hardware = preset("h100")
    base = times_of("moe_235b_a22b", hardware=hardware)
    for slower in ("bf16_flops", "memory_bandwidth", "link_bandwidth"):
        times = times_of("moe_235b_a22b", hardware=replace(hardware, **{slower: getattr(hardware, slower) / 2}))
        assert (times.forward_PV > base.forward_PV).all(), slower
    network = times_of("moe_235b_a22b", hardware=replace(hardware, network_bandwidth=hardware.network_bandwidth / 2))
    assert network.transfer == pytest.approx(2 * base.transfer) and network.once > base.once


def test_fp8_is_faster_but_scores_in_bf16() -> None:
    fp8 = "--fp8-format hybrid"
    one, other = (times_of("moe_30b_a3b", flags) for flags in ("", fp8))
    assert other.forward_PV[0, 0] < one.forward_PV[0, 0]
    assert (other.competing_forward_L == one.competing_forward_L).all()


def test_small_layers_are_bound_by_kernels() -> None:
    job = job_of("--bf16")
    times = pipeline_times(job, preset("h100"), count_parameters(job))
    assert times.forward_PV[0, 0] >= 4 * 60 * preset("h100").kernel_seconds


def test_the_first_stage_has_tower_and_projector() -> None:
    """Their layers compete there too, each part at its own price."""
    stages = "--pipeline-model-parallel-size 2 --global-batch-size 16 --bf16"
    seeing, text = job_of(f"{VISION} {stages}", 2), job_of(f"{DENSE} {stages}", 2)
    times, without = (pipeline_times(job, preset("h100"), count_parameters(job)) for job in (seeing, text))
    assert (times.forward_PV[0] > without.forward_PV[0]).all() and (times.backward_PV[0] > without.backward_PV[0]).all()
    assert (times.forward_PV[1] == without.forward_PV[1]).all()
    assert times.stage_chunks == ((0, 0),) * 4
    added_L = times.competing_forward_L
    assert (added_L[:3] == added_L[0]).all() and added_L[3] != added_L[0] and added_L.all()


def test_a_frozen_tower_has_no_backward_pass() -> None:
    frozen, trained = (
        pipeline_times(job, preset("h100"), count_parameters(job))
        for job in (job_of(f"{VISION} {DENSE} {flag}") for flag in ("--freeze-ViT", ""))
    )
    (of_text,) = (pipeline_times(job, preset("h100"), count_parameters(job)) for job in (job_of(DENSE),))
    assert frozen.forward_PV == trained.forward_PV
    tower = trained.backward_PV - frozen.backward_PV
    assert (tower >= 3 * 2 * 60 * preset("h100").kernel_seconds).all()
    assert (frozen.backward_PV > of_text.backward_PV).all()
