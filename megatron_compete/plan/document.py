"""A plan as one JSON document: everything that was counted and simulated, with the unit in each key's name."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from megatron_compete.plan.budget import Fit
from megatron_compete.plan.job import Job
from megatron_compete.plan.job_plan import JobPlan
from megatron_compete.plan.memory import StageMemory, not_counted
from megatron_compete.plan.overhead import Overhead, PolicyOutcome
from megatron_compete.plan.scoring import scoring_kernel
from megatron_compete.plan.traffic import PURPOSES, Traffic
from megatron_compete.vlm.config import Part
from megatron_compete.vlm.layer_names import PART_NAMES

FORMAT = 1
"""Grows when a key changes its meaning or goes; new keys may come without it."""

NOTES = (
    "a pipeline transfer begins when both stages have posted it; transfers do not slow each other or computation down",
    "launch gaps, stragglers, data loading, checkpoints and evaluation are not counted",
)
NOTES_ON_EXPERTS = (
    "routing is even: every expert gets the mean number of rows, and all microbatches of a step take the same time",
)
SCORING_NOTES = {
    "plain": "the scoring pass runs Megatron's expert modules, in bf16",
    "fused": "the scoring pass runs in the fused kernels, which were never measured: as efficient as the experts' own",
    "fused-fp8": "the scoring pass runs in the fused FP8 kernels, which were never measured: as efficient as FP8 experts",
}
NOTES_ON_FEATURES: tuple[tuple[Callable[[Job], object], str], ...] = (
    (lambda job: job.transformer.multi_latent_attention,
     "latent attention is trained with keys and values of every head made from the latent: nothing is absorbed"),
    (lambda job: job.layers.mtp_depths,
     "multi-token prediction is part of the step and of the total, not of the active parameters"),
    (lambda job: job.transformer.fp8,
     "FP8: linear layers keep quantised inputs and two quantised copies of their weights; attention is in bf16"),
    (lambda job: job.args.overlap_moe_expert_parallel_comm,
     "rows travel while another microbatch is computed, as far as that takes as long; one more microbatch is in flight"),
    (lambda job: job.transformer.cuda_graph_impl != "none",
     "CUDA graphs take the launches of what they capture away; a competing layer's own are counted as without"),
    (lambda job: job.args.use_megatron_fsdp or job.args.use_torch_fsdp2,
     "fully sharded data parallelism gathers weights twice and scatters gradients once a microbatch, behind computation"),
    (lambda job: job.args.optimizer_cpu_offload,
     "the offloaded share of the optimizer's step runs at the bandwidth between host and device"),
    (lambda job: job.transformer.moe_expert_capacity_factor is not None and job.competes,
     "the capacity factor is a normal step's: a competing layer drops no token"),
    (lambda job: any(kind.mixer in ("gdn", "mamba") for kind in job.layers.kinds),
     "scans of gated delta nets and Mamba reach the share of the peak that the narrowest experts do"),
)  # fmt: skip
NOTES_ON_COMPETITION = (
    "policies are simulated at the highest rate, without competition warm-up and rate decay",
    "launches of the small kernels around a scoring pass (a sample, the router's gradient: some 25 a layer) are not counted: "
    "where steps wait for launches, a high rate costs more",
)


def model_notes(job: Job) -> tuple[str, ...]:
    """What the times take for granted, beside the efficiencies of the hardware."""
    kernels = dict.fromkeys(scoring_kernel(part) for part in job.competing_parts)
    competition = (*(SCORING_NOTES[kernel] for kernel in kernels), *NOTES_ON_COMPETITION) if job.competes else ()
    features = tuple(note for applies, note in NOTES_ON_FEATURES if applies(job))
    return (*job.assumed, *(() if job.is_dense else NOTES_ON_EXPERTS), *NOTES, *features, *competition)


def plan_document(
    plan: JobPlan, overhead: Overhead, recipe: str, within_budget: Sequence[Fit] | None = None
) -> dict[str, Any]:
    """Everything about a plan as plain values; what does not exist is None."""
    return _plain(
        {
            "format": FORMAT,
            "recipe": recipe,
            "layout": _layout(plan),
            "parameters": _parameters(plan),
            "memory": _memory(plan),
            "traffic_per_step": [_traffic(kind) for kind in plan.traffic],
            "flops_per_step": {
                "normal_flop": plan.flops.normal,
                "competing_layer_flop": plan.flops.competing_layer,
                "competing_layer_flop_by_part": {
                    PART_NAMES[part]: added for part, added in plan.flops.competing_of_part.items()
                },
                "most_competing_flop": plan.flops.competing,
                "mean_flop": plan.flops.mean,
            },
            "times": _times(plan),
            "step": step_document(plan, overhead),
            "competition": _competition(plan, overhead),
            "within_budget": None if within_budget is None else [_fit(fit) for fit in within_budget],
            "assumptions": _assumptions(plan),
        }
    )


def competing_seconds(plan: JobPlan) -> dict[Part, tuple[float, float]]:
    """What competing adds to the forward and the backward pass of one microbatch in a layer, by part of the model."""
    times = plan.times
    forward_L, backward_L = times.competing_forward_L.tolist(), times.competing_backward_L.tolist()
    parts = [part.part for part in plan.job.competing_parts]
    return {part: (forward, backward) for part, forward, backward in zip(parts, forward_L, backward_L, strict=True)}


def own_outcome(overhead: Overhead) -> PolicyOutcome | None:
    """Steps under the job's own policy and A_max; None where no layer ever competes."""
    return None if overhead.policy is None else overhead.of(overhead.policy, overhead.max_active)


def step_document(plan: JobPlan, overhead: Overhead) -> dict[str, Any]:
    """Step time and MFU. A mean step's MFU counts the model's own flops: competition only lowers it."""
    own = own_outcome(overhead)
    mean = overhead.normal_seconds if own is None else own.mean_seconds
    normal_flop = plan.flops.normal
    return {
        "normal_seconds": overhead.normal_seconds,
        "mean_seconds": mean,
        "competing_mean_seconds": None if own is None else own.competing_mean_seconds,
        "overhead_percent": 0.0 if own is None else own.overhead_percent,
        "even_overhead_percent": 100 * plan.times.evenly(overhead.rate) / overhead.normal_seconds,
        "added_flops_percent": 100 * (plan.flops.mean / normal_flop - 1),
        "normal_mfu_percent": 100 * plan.utilization(normal_flop, overhead.normal_seconds),
        "mean_mfu_percent": 100 * plan.utilization(normal_flop, mean),
        "tokens_per_second": plan.job.step_tokens / mean,
    }


def _layout(plan: JobPlan) -> dict[str, Any]:
    job, sizes = plan.job, plan.job.sizes
    return {
        "gpu": plan.hardware.name,
        "gpus": sizes.world,
        "gpus_per_node": job.gpus_per_node,
        "tensor_parallel": sizes.tp,
        "pipeline_parallel": sizes.pp,
        "virtual_stages": sizes.vp,
        "context_parallel": sizes.cp,
        "expert_parallel": None if job.is_dense else sizes.ep,
        "expert_tensor_parallel": None if job.is_dense else sizes.etp,
        "data_parallel": sizes.dp,
        "expert_data_parallel": None if job.is_dense else sizes.edp,
        "micro_batch_size": job.args.micro_batch_size,
        "global_batch_size": job.args.global_batch_size,
        "microbatches": job.microbatches,
        "sequence_length": job.args.seq_length,
        "tokens_per_step": job.step_tokens,
    }


def _parameters(plan: JobPlan) -> dict[str, Any]:
    parameters = plan.parameters
    return {
        "total": parameters.total,
        "active": parameters.active,
        "by_kind": parameters.by_kind,
        "on_rank_by_stage": [parameters.on_rank(stage) for stage in range(plan.job.sizes.pp)],
    }


def _memory(plan: JobPlan) -> dict[str, Any]:
    estimate = None
    if plan.megatron_memory is not None:
        state, activations = plan.megatron_memory
        estimate = {"weights_and_optimizer_bytes": state, "activations_bytes": activations}
    return {
        "gpu_bytes": plan.hardware.memory_bytes,
        "usable_bytes": plan.memory_limit,
        "fits": plan.fits,
        "fullest_stage": plan.fullest.stage,
        "stages": [_stage_memory(stage) for stage in plan.memory],
        "megatron_estimate": estimate,
        "not_counted": not_counted(plan.job),
    }


def _stage_memory(stage: StageMemory) -> dict[str, Any]:
    return {
        "stage": stage.stage,
        "weights_bytes": stage.weights,
        "gradients_bytes": stage.gradients,
        "optimizer_bytes": stage.optimizer,
        "activations_bytes": stage.activations,
        "output_bytes": stage.output,
        "competition_bytes": stage.competition,
        "scoring_bytes": stage.scoring,
        "normal_step_bytes": stage.normal,
        "competing_step_bytes": stage.competing,
        "microbatches_in_flight_by_chunk": stage.in_flight_V,
    }


def _traffic(kind: Traffic) -> dict[str, Any]:
    return {
        "group": kind.purpose,
        "purpose": PURPOSES[kind.purpose],
        "group_size": kind.group_size,
        "sent_by_busiest_rank_bytes": kind.most,
        "within_node_bytes": kind.within,
        "across_nodes_bytes": kind.across,
        "sent_by_stage_bytes": kind.sent_P.tolist(),
    }


def _times(plan: JobPlan) -> dict[str, Any]:
    times = plan.times
    return {
        "forward_microbatch_seconds_by_stage_and_chunk": times.forward_PV.tolist(),
        "backward_microbatch_seconds_by_stage_and_chunk": times.backward_PV.tolist(),
        "competing_layer_forward_seconds": float(times.competing_forward_L.mean()) if len(times.stage_chunks) else 0.0,
        "competing_layer_backward_seconds": float(times.competing_backward_L.mean())
        if len(times.stage_chunks)
        else 0.0,
        "competing_layer_seconds_by_part": {
            PART_NAMES[part]: {"forward": forward, "backward": backward}
            for part, (forward, backward) in competing_seconds(plan).items()
        },
        "pipeline_transfer_seconds": times.transfer,
        "once_per_step_seconds": times.once,
    }


def _competition(plan: JobPlan, overhead: Overhead) -> dict[str, Any]:
    compete = plan.job.compete
    return {
        "preset": None if compete is None else plan.job.args.compete_preset,
        "kind": None if compete is None else compete.kind,
        "policy": overhead.policy,
        "rate": overhead.rate,
        "token_fraction": None if compete is None else compete.token_fraction,
        "max_active_layers": overhead.max_active,
        "layers": len(plan.times.stage_chunks),
        "simulated_steps": overhead.steps,
        "outcomes": [_outcome(outcome) for outcome in overhead.outcomes],
    }


def _fit(fit: Fit) -> dict[str, Any]:
    return dataclasses.asdict(fit) | {"competing_percent": fit.competing_percent}


def _outcome(outcome: PolicyOutcome) -> dict[str, Any]:
    document: dict[str, Any] = {
        "policy": outcome.policy,
        "max_active_layers": outcome.max_active,
        "infeasible": outcome.infeasible,
    }
    if outcome.infeasible is None:
        document |= {
            "competing_steps_percent": 100 * outcome.competing_share,
            "mean_seconds": outcome.mean_seconds,
            "p50_seconds": outcome.p50_seconds,
            "p95_seconds": outcome.p95_seconds,
            "max_seconds": outcome.max_seconds,
            "competing_mean_seconds": outcome.competing_mean_seconds,
            "overhead_percent": outcome.overhead_percent,
            "most_layers": outcome.most_layers,
            "most_layers_on_a_stage": outcome.most_layers_on_a_stage,
        }
    return document


def _assumptions(plan: JobPlan) -> dict[str, Any]:
    hardware = plan.hardware
    return {
        "bf16_flop_per_second": hardware.bf16_flops,
        "fp8_flop_per_second": hardware.fp8_flops,
        "memory_bytes_per_second": hardware.memory_bandwidth,
        "link_bytes_per_second": hardware.link_bandwidth,
        "network_bytes_per_second": hardware.network_bandwidth,
        **hardware.assumptions(),
        "transformer_engine": None if plan.job.transformer_engine is None else plan.job.transformer_engine.version,
        "notes": model_notes(plan.job),
    }


def _plain(value: Any) -> Any:
    """JSON has neither tuples nor nan."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
