"""Memory of a rank of each pipeline stage: weights, gradients, optimizer, activations, and a competing step's extra.

State is counted as Megatron allocates it (megatron/core/distributed/param_and_grad_buffer.py,
megatron/core/optimizer): with `--use-distributed-optimizer` each tensor begins at a multiple of 64 elements and each
buffer ends at one of 128 and of its data parallel size. Activations: `plan/activations.py`.
"""

import argparse
import contextlib
import copy
import io
import math
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from megatron.core.optimizer.param_layout import pad_bucket_end, pad_param_start
from megatron.core.pipeline_parallel.schedules import get_pp_rank_microbatches, get_schedule_table
from megatron.training.theoretical_memory_usage import (
    compute_activation_memory,
    compute_activation_memory_without_sp,
    compute_weight_and_optimizer_memory,
)

from megatron_compete.plan.activations import (
    KeptActivations,
    chunk_activations,
    competing_activations,
    output_activations,
    scoring_memory,
    vision_activations,
)
from megatron_compete.plan.job import Job
from megatron_compete.plan.optimizer import state_bytes
from megatron_compete.plan.parameters import Parameters
from megatron_compete.plan.sharding import Sharding
from megatron_compete.plan.tensors import Tensors

NOT_COUNTED = (
    "the CUDA context and NCCL's buffers",
    "the allocator's fragmentation and unused cache",
    "workspaces of GEMM and attention kernels",
    "static buffers of CUDA graphs, and what an offload holds on its way",
    "temporary tensors of the optimizer step and of gradient reduction",
)
NOT_COUNTED_OF_EXPERTS = "uneven routing: an expert rank that gets more rows than the mean holds more"

SCHEDULE_WINDOWS = 4
"""Windows of the schedule that are searched for the step that holds most."""


@dataclass(frozen=True)
class StageMemory:
    """Bytes on one rank of a pipeline stage at its fullest."""

    stage: int
    weights: float
    gradients: float
    optimizer: float
    activations: float
    """Of all microbatches in flight."""
    output: float
    """Logits and loss, on the last stage."""
    competition: float
    """What competing layers keep of all microbatches in flight, at the fullest step of the schedule."""
    scoring: float
    """The scoring pass of one layer, while it runs."""
    in_flight_V: tuple[int, ...]
    """Microbatches of each model chunk that wait for their backward pass."""

    @property
    def state(self) -> float:
        """Weights, gradients and optimizer."""
        return self.weights + self.gradients + self.optimizer

    @property
    def normal(self) -> float:
        """At a normal step."""
        return self.state + self.activations + self.output

    @property
    def competing(self) -> float:
        """At the fullest competing step."""
        return self.normal + self.competition + self.scoring


def not_counted(job: Job) -> tuple[str, ...]:
    """What a rank holds beside these numbers."""
    return NOT_COUNTED if job.is_dense else (*NOT_COUNTED, NOT_COUNTED_OF_EXPERTS)


def stage_memory(job: Job, parameters: Parameters) -> tuple[StageMemory, ...]:
    """Memory of a rank of every stage, the first stage first."""
    return tuple(_stage(job, parameters, stage) for stage in range(job.sizes.pp))


def _stage(job: Job, parameters: Parameters, stage: int) -> StageMemory:
    in_flight = in_flight_microbatches(job, stage)
    chunks = [_chunk_activations(job, stage, chunk) for chunk in range(job.sizes.vp)]
    kept = sum(count * chunk.per_microbatch for count, chunk in zip(in_flight, chunks))
    live = max(chunk.live for chunk in chunks)
    competition = _competition(job, stage, in_flight)
    return StageMemory(
        stage=stage,
        **_state(job, parameters.tensors_PV[stage]),
        activations=kept + live,
        output=output_activations(job) if stage == job.sizes.pp - 1 else 0.0,
        competition=competition,
        scoring=_scoring(job, stage) if competition else 0.0,
        in_flight_V=in_flight,
    )


def _chunk_activations(job: Job, stage: int, chunk: int) -> KeptActivations:
    """Of all parts; what recomputation holds is there for one part at a time."""
    predicts = (stage, chunk) == job.layers.mtp_place
    parts = [chunk_activations(job, job.layers.run_by(stage, chunk), job.layers.mtp_depths if predicts else 0)]
    if (stage, chunk) == (0, 0):
        parts += [vision_activations(part) for part in job.parts[:-1]]
    return KeptActivations(sum(part.per_microbatch for part in parts), max(part.live for part in parts))


def in_flight_microbatches(job: Job, stage: int) -> tuple[int, ...]:
    """Microbatches of each model chunk in flight when the stage begins its first backward pass, from Megatron's own
    warm-up count and schedule table."""
    chunks, config = job.sizes.vp, job.transformer
    group = SimpleNamespace(size=lambda: job.sizes.pp, rank=lambda: stage)
    virtual = config.virtual_pipeline_model_parallel_size
    pipeline = SimpleNamespace(pp_group=group, virtual_pipeline_model_parallel_size=virtual)
    per_group = config.microbatch_group_size_per_vp_stage
    total, _, warmup, _ = get_pp_rank_microbatches(job.microbatches, chunks, per_group, p2p_communicator=pipeline)
    if job.args.overlap_moe_expert_parallel_comm:  # a forward pass runs beside each backward pass, so one more waits
        warmup += 1
    forwards = get_schedule_table(job.microbatches, chunks, per_group)[: min(warmup + 1, total)]
    return tuple(sum(chunk == number for _, chunk in forwards) for number in range(chunks))


def _competition(job: Job, stage: int, in_flight_V: tuple[int, ...]) -> float:
    """Bytes that the stage's competing layers keep, at the step of the first windows at which they keep most."""
    if job.schedule is None:
        return 0.0
    layers = [competing_activations(part) for part in job.competing_parts]
    in_flight_L = np.array([in_flight_V[chunk] if at == stage else 0 for at, chunk in job.stage_chunks])
    kept_L = in_flight_L * np.array([layer.per_microbatch for layer in layers])
    live_L = (in_flight_L > 0) * np.array([layer.live for layer in layers])
    start = job.schedule.warmup_steps
    table_NL = job.schedule.table(start, start + SCHEDULE_WINDOWS * job.schedule.window_steps)
    return float((table_NL @ kept_L + (table_NL * live_L).max(axis=1)).max())


def _scoring(job: Job, stage: int) -> float:
    """The most that the scoring pass of a layer on the stage holds."""
    here = {part.part: part for part, (at, _) in zip(job.competing_parts, job.stage_chunks, strict=True) if at == stage}
    return max(scoring_memory(part) for part in here.values())


def _state(job: Job, chunks: tuple[tuple[Tensors, ...], ...]) -> dict[str, float]:
    """Bytes of weights, gradient buffers and optimizer of a stage's model chunks."""
    sharding = Sharding.of(job)
    weights = gradients = optimizer = 0.0
    for chunk in chunks:
        for expert in (False, True):
            tensors = [item for item in chunk if item.expert == expert]
            frozen = [item for item in tensors if item.frozen]
            tensors = [item for item in tensors if not item.frozen]
            elements, shard = _buffer(job, tensors, expert)
            padding = elements / max(1, sum(item.on_rank for item in tensors))
            weights += padding * sharding.held_weights(job, tensors) + sharding.held_weights(job, frozen)
            gradients += sharding.held_gradients(job, elements, expert)
            optimizer += shard * state_bytes(job, tensors)
    return {"weights": weights, "gradients": gradients, "optimizer": optimizer}


def _buffer(job: Job, tensors: list[Tensors], expert: bool) -> tuple[int, int]:
    """Elements of a buffer of tensors, and of the optimizer's part of it on one rank."""
    elements = sum(item.on_rank for item in tensors)
    ranks = Sharding.of(job).optimizer_ranks(job, expert)
    if not job.args.use_distributed_optimizer or elements == 0:
        return elements, math.ceil(elements / ranks)
    padded = pad_bucket_end(
        sum(item.count * pad_param_start(item.elements) for item in tensors),
        ranks,
        job.args.ddp_pad_buckets_for_high_nccl_busbw,
    )
    return padded, math.ceil(padded / ranks)


def megatron_estimate(job: Job) -> tuple[float, float] | None:
    """Megatron's own estimate in bytes: weights with optimizer of the fullest shard, and its activations; None for a
    vision-language model, of which it knows the decoder alone.

    megatron/training/theoretical_memory_usage.py. It takes bf16 with fp32 gradients for granted, divides layers evenly
    over stages, and counts activations of dense layers only, without experts.
    """
    if job.vision is not None:
        return None
    args = argparse.Namespace(**copy.copy(vars(job.args)))
    with contextlib.redirect_stdout(io.StringIO()):
        state = compute_weight_and_optimizer_memory(args)
        with_sequence_parallel = args.sequence_parallel and args.recompute_granularity == "selective"
        activations = compute_activation_memory if with_sequence_parallel else compute_activation_memory_without_sp
        return float(state), float(activations(args, job.microbatches))
