"""Seconds of single parts by hand, on a machine of round numbers."""

from dataclasses import replace

import pytest

from megatron_compete.plan.groups import Groups
from megatron_compete.plan.hardware import preset
from megatron_compete.plan.layer_times import LAYER_KERNELS, LayerTimes, Seconds
from tests.plan.jobs import MOE_LAYER, job_of

MACHINE = replace(
    preset("h100"),
    bf16_flops=1e12, fp8_flops=2e12, fp8_efficiency=0.5, memory_bandwidth=1e11, memory_efficiency=0.5, link_bandwidth=1e10,
    link_efficiency=0.5, network_bandwidth=1e9, network_efficiency=0.5,
)  # fmt: skip


def times_of(flags: str = "", hardware=MACHINE) -> LayerTimes:
    job = job_of(flags)
    return LayerTimes(job, hardware, Groups(job))


def test_flops_bytes_and_links() -> None:
    times = times_of()
    assert times.computing(1e12, efficiency=0.5) == 2.0
    assert times.moving(1e11) == 2.0
    assert times.sending(1e10, across_share=0.0) == 2.0
    assert times.sending(1e10, across_share=1.0) == 20.0
    assert times.sending(1e10, across_share=0.5) == 10.0  # links and network at the same time


def test_fp8_is_twice_the_rate_at_its_share() -> None:
    times = times_of("--bf16 --fp8-format e4m3 --fp8-recipe blockwise")
    assert times.computing(1e12, efficiency=0.5) == pytest.approx(1e12 / (2e12 * 0.5 * 0.5))
    assert times.computing(1e12, efficiency=0.5, low_precision=False) == 2.0


def test_a_small_layer_takes_its_kernels() -> None:
    slow_to_launch = replace(MACHINE, kernel_seconds=1.0)
    assert times_of(hardware=slow_to_launch).normal(MOE_LAYER) == Seconds(LAYER_KERNELS, 2 * LAYER_KERNELS)
    recomputed = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
    assert times_of(recomputed, slow_to_launch).normal(MOE_LAYER) == Seconds(LAYER_KERNELS, 3 * LAYER_KERNELS)


def test_competition_costs_only_where_it_happens() -> None:
    assert times_of("--compete-rate 0").competing() == times_of("--router topk").competing() == Seconds(0.0, 0.0)
    assert times_of().competing().forward > 0.0
    utility = times_of("--compete-kind utility").competing()
    assert utility.forward == 0.0 < utility.backward


@pytest.mark.parametrize("kind", ("response", "utility"))
def test_a_sample_costs_its_share_of_rows_traffic_and_flops(kind: str) -> None:
    """Where nothing is bound by launches or by reading weights, everything that competition adds is the tokens'."""
    machine = replace(MACHINE, kernel_seconds=0.0, bf16_flops=1e9)
    flags = f"--compete-kind {kind} --bf16 --expert-model-parallel-size 2 --compete-token-fraction"
    jobs = [job_of(f"{flags} {fraction}", gpus=2) for fraction in (1, 0.25)]
    whole, sample = (LayerTimes(job, machine, Groups(job)) for job in jobs)
    assert sample.competing().forward == pytest.approx(0.25 * whole.competing().forward)
    assert sample.competing().backward == pytest.approx(0.25 * whole.competing().backward)
    sent = [sum(times.traffic.competing().total.values()) for times in (whole, sample)]
    assert sent[1] == pytest.approx(0.25 * sent[0]) and sent[0] > 0


def test_the_output_layers_backward_is_two_products_and_one_pass_over_the_logits() -> None:
    times = times_of()
    output = times.output()
    logits = times.job.tokens * times.job.args.padded_vocab_size
    loss = times.moving(logits * (4 + 16))  # fp32 logits, and four fp32 passes of the loss
    assert output.backward - loss == pytest.approx(2 * (output.forward - loss))
