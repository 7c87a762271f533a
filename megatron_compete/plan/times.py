"""Seconds that a job's parts take on stated hardware."""

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_compete.plan.groups import Groups
from megatron_compete.plan.hardware import Hardware
from megatron_compete.plan.job import Job
from megatron_compete.plan.layer_times import LayerTimes
from megatron_compete.plan.optimizer import update_seconds
from megatron_compete.plan.parameters import Parameters
from megatron_compete.plan.sharding import Sharding
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

    competing_forward_L: NDArray[np.float64]
    """What competition adds to the forward pass of one microbatch in each layer that can compete, in order of depth."""

    competing_backward_L: NDArray[np.float64]
    """What it adds to the layer's backward pass."""

    stage_chunks: tuple[tuple[int, int], ...]
    """(stage, chunk) of each of these layers."""

    transfer: float
    """To hand one microbatch's activations to the next stage."""

    microbatches: int
    """Per step and pipeline."""

    group_size: int
    """Microbatches that a stage takes in a row before it changes to its next chunk (interleaving)."""

    once: float
    """Per step outside the pipeline: synchronisation that nothing hides, and the optimizer."""

    def evenly(self, rate: float) -> float:
        """Seconds that competition would add to a step were its work spread evenly over steps and stages, each busy all
        the time with it: the least that any schedule can reach.

        Args:
            rate: share of the steps at which a layer competes.
        """
        of_all_layers = float((self.competing_forward_L + self.competing_backward_L).sum())
        return rate * of_all_layers * self.microbatches / self.forward_PV.shape[0]


def pipeline_times(job: Job, hardware: Hardware, parameters: Parameters) -> PipelineTimes:
    """Times of a job's parts on this hardware; every one an estimate (`plan/layer_times.py`)."""
    groups = Groups(job)
    layers = LayerTimes(job, hardware, groups)
    forward_PV, backward_PV = _chunks(job, layers)
    share = groups.stage_share
    per_byte = share / (hardware.network_bandwidth * hardware.network_efficiency)
    per_byte += (1 - share) / (hardware.link_bandwidth * hardware.link_efficiency)
    normal = PipelineTimes(
        forward_PV=forward_PV,
        backward_PV=backward_PV,
        competing_forward_L=np.zeros(len(job.stage_chunks)),
        competing_backward_L=np.zeros(len(job.stage_chunks)),
        stage_chunks=job.stage_chunks,
        transfer=transfer_bytes(job) * per_byte if job.sizes.pp > 1 else 0.0,
        microbatches=job.microbatches,
        group_size=job.transformer.microbatch_group_size_per_vp_stage,
        once=max(
            _once(job, layers, groups, parameters, stage, forward_PV[stage].sum(), backward_PV[stage].sum())
            for stage in range(job.sizes.pp)
        ),
    )
    return added_by_competition(normal, job, hardware)


def added_by_competition(times: PipelineTimes, job: Job, hardware: Hardware) -> PipelineTimes:
    """These times, and what a competing layer adds with the settings of `job`, which may be others than theirs."""
    groups = Groups(job)
    competing = {part.part: part for part in job.competing_parts}
    of_part = {name: LayerTimes(part, hardware, groups).competing() for name, part in competing.items()}
    layers = [of_part[part.part] for part in job.competing_parts]
    return dataclasses.replace(
        times,
        competing_forward_L=np.array([layer.forward for layer in layers], dtype=np.float64),
        competing_backward_L=np.array([layer.backward for layer in layers], dtype=np.float64),
    )


def _chunks(job: Job, layers: LayerTimes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Forward and backward seconds of every model chunk."""
    forward_PV, backward_PV = np.zeros((2, job.sizes.pp, job.sizes.vp))
    beside = [(job.layers.mtp_place, layers.joining()), ((-1, -1), layers.output())]
    for part in job.parts:
        of_part = LayerTimes(part, layers.hardware, layers.groups)
        kinds = {kind: of_part.normal(kind) for kind in part.layers.kinds}
        beside.append(((0, 0), of_part.patches()))
        for stage in range(job.sizes.pp):
            for chunk in range(job.sizes.vp):
                here = part.layers.run_by(stage, chunk)
                forward_PV[stage, chunk] += sum(kinds[kind].forward for kind in here)
                backward_PV[stage, chunk] += sum(kinds[kind].backward for kind in here)
    for place, seconds in beside:
        forward_PV[place] += seconds.forward
        backward_PV[place] += seconds.backward
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
    parameters behind the first one's forward pass. What fully sharded data parallelism sends at every microbatch hides
    behind all of them.
    """
    args, sharding = job.args, Sharding.of(job)
    reduce = gather = update = 0.0
    for name, expert in (("dp-cp", False), ("edp", True)):
        tensors = [item for chunk in parameters.tensors_PV[stage] for item in chunk if item.expert == expert]
        group = groups[name]
        sent = sharding.sent(job, tensors, group.size)
        reduce += layers.sending(sent.gradients, group.ring_share)
        gather += layers.sending(sent.parameters, group.ring_share)
        update += update_seconds(job, layers, tensors, sharding.optimizer_ranks(job, expert))
    if args.overlap_grad_reduce or sharding.every_microbatch:
        reduce = max(0.0, reduce - backward * (job.microbatches if sharding.every_microbatch else 1))
    if args.overlap_param_gather or sharding.every_microbatch:
        gather = max(0.0, gather - forward * (job.microbatches if sharding.every_microbatch else 1))
    return reduce + gather + update
