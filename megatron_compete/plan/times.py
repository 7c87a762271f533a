"""Seconds that a job's parts take on stated hardware."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_compete.plan.groups import Groups
from megatron_compete.plan.hardware import Hardware
from megatron_compete.plan.job import Job
from megatron_compete.plan.layer_times import LayerTimes
from megatron_compete.plan.memory import gradient_bytes, optimizer_bytes, shard_ranks
from megatron_compete.plan.parameters import Parameters
from megatron_compete.plan.traffic import transfer_bytes


@dataclass(frozen=True)
class PipelineTimes:
    """Seconds of one microbatch on every stage, and of what a step does once.

    P counts pipeline stages, V the model chunks of a stage (1 without interleaving).
    """

    forward_PV: NDArray[np.float64]
    """A normal step's forward pass of one microbatch."""

    backward_PV: NDArray[np.float64]
    """Its backward pass, recomputation included."""

    competing_forward: float
    """What competition adds to one layer's forward pass of one microbatch."""

    competing_backward: float
    """What competition adds to that layer's backward pass."""

    stage_chunks: tuple[tuple[int, int], ...]
    """(stage, chunk) of each layer that can compete, in order of depth."""

    transfer: float
    """To hand one microbatch's activations to the next stage."""

    microbatches: int
    """Per step and pipeline."""

    group_size: int
    """Microbatches that a stage takes in a row before it changes to its next chunk (interleaving)."""

    once: float
    """Per step outside the pipeline: synchronisation that nothing hides, and the optimizer."""


def pipeline_times(job: Job, hardware: Hardware, parameters: Parameters) -> PipelineTimes:
    """Times of a job's parts on this hardware; every one an estimate (`plan/layer_times.py`)."""
    groups = Groups(job)
    layers = LayerTimes(job, hardware, groups)
    forward_PV, backward_PV = _chunks(job, layers)
    competing = layers.competing()
    share = groups.stage_share
    per_byte = share / (hardware.network_bandwidth * hardware.network_efficiency)
    per_byte += (1 - share) / (hardware.link_bandwidth * hardware.link_efficiency)
    return PipelineTimes(
        forward_PV=forward_PV,
        backward_PV=backward_PV,
        competing_forward=competing.forward,
        competing_backward=competing.backward,
        stage_chunks=job.stage_chunks,
        transfer=transfer_bytes(job) * per_byte if job.sizes.pp > 1 else 0.0,
        microbatches=job.microbatches,
        group_size=job.transformer.microbatch_group_size_per_vp_stage,
        once=max(
            _once(job, layers, groups, parameters, stage, forward_PV[stage].sum(), backward_PV[stage].sum())
            for stage in range(job.sizes.pp)
        ),
    )


def _chunks(job: Job, layers: LayerTimes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Forward and backward seconds of every model chunk."""
    kinds = {is_moe: layers.normal(is_moe) for is_moe in (False, True)}
    forward_PV, backward_PV = np.zeros((2, job.sizes.pp, job.sizes.vp))
    for stage, chunks in enumerate(job.layers_PV):
        for chunk, numbers in enumerate(chunks):
            forward_PV[stage, chunk] = sum(kinds[number in job.moe_layers].forward for number in numbers)
            backward_PV[stage, chunk] = sum(kinds[number in job.moe_layers].backward for number in numbers)
    output = layers.output()
    forward_PV[-1, -1] += output.forward
    backward_PV[-1, -1] += output.backward
    return forward_PV, backward_PV


def _once(
    job: Job,
    layers: LayerTimes,
    groups: Groups,
    parameters: Parameters,
    stage: int,
    forward: float,
    backward: float,
) -> float:
    """Seconds that a stage spends once a step: what synchronisation its flags leave uncovered, and the optimizer.

    `--overlap-grad-reduce` hides gradients behind the last microbatch's backward pass, `--overlap-param-gather` new
    parameters behind the first one's forward pass.
    """
    args = job.args
    reduce = gather = update = 0.0
    for name, expert in (("dp-cp", False), ("edp", True)):
        elements, ranks = parameters.on_rank(stage, expert), shard_ranks(job, expert)
        around = elements * (ranks - 1) / ranks
        share = groups[name].ring_share
        rounds = 1 if args.use_distributed_optimizer else 2
        reduce += layers.sending(rounds * around * gradient_bytes(job), share)
        if args.use_distributed_optimizer:
            gather += layers.sending(around * job.element_bytes, share)
        updated = elements / ranks if args.use_distributed_optimizer else elements
        # gradient read for its norm and again, state and master weights read and written, weights written, zeros
        update += updated * (8 + 2 * optimizer_bytes(job) + job.element_bytes) + elements * gradient_bytes(job)
    if args.overlap_grad_reduce:
        reduce = max(0.0, reduce - backward)
    if args.overlap_param_gather:
        gather = max(0.0, gather - forward)
    return reduce + gather + layers.moving(update)
