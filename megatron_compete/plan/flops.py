"""Floating-point FLOPs of a job's parts, on all ranks together for whole steps and on one rank for one layer.

A GEMM of m x k by k x n is 2 m k n FLOPs; a backward pass is twice a forward one. Norms, activations, the softmax
and the response are left out, as Megatron leaves them out.
"""

from dataclasses import dataclass

from megatron.training.training import num_floating_point_operations

from megatron_compete.plan.job import Job
from megatron_compete.training.flops import scoring_flops


@dataclass(frozen=True)
class StepFLOPs:
    """FLOPs of a step over all ranks; recomputation not counted, as in Megatron's throughput."""

    normal: float
    """Megatron's count."""
    competing_layer: float
    """What one competing layer adds."""
    competing: float
    """A step at which A_max layers compete."""
    mean: float
    """At the schedule's mean rate."""


def step_flops(job: Job) -> StepFLOPs:
    """FLOPs of a global batch, as the trainer's log counts them."""
    normal = float(num_floating_point_operations(job.args, job.args.global_batch_size))
    if job.schedule is None or job.compete is None:
        return StepFLOPs(normal, 0.0, normal, normal)
    layer = scoring_flops(job.args, job.step_tokens, job.compete.response_gradients)
    most = min(job.schedule.max_active, job.schedule.num_layers)
    mean = job.schedule.rate * job.schedule.num_layers
    return StepFLOPs(normal, layer, normal + most * layer, normal + mean * layer)


@dataclass(frozen=True)
class LayerFlops:
    """Forward FLOPs of one microbatch in one layer on one rank."""

    projections: float
    """Of attention: queries, keys and values, and output."""
    attention: float
    """Scores and their product with the values, the causal half."""
    mlp: float
    """Of a dense MLP or shared experts."""
    experts: float


def layer_flops(job: Job, is_moe: bool) -> LayerFlops:
    """One rank's share of one layer; routed rows are even over ranks."""
    config, tokens, tp = job.transformer, job.tokens, job.sizes.tp
    queries = config.kv_channels * config.num_attention_heads
    keys = config.kv_channels * config.num_query_groups
    ffn = (config.moe_shared_expert_intermediate_size or 0) if is_moe else config.ffn_hidden_size
    rows = job.sharded_tokens * config.moe_router_topk  # times the shards of an expert, and each has that part of F
    return LayerFlops(
        projections=2.0 * tokens * config.hidden_size * (2 * queries + 2 * keys) / tp,
        attention=2.0 * tokens * job.args.seq_length * queries / tp,
        mlp=2.0 * tokens * config.hidden_size * matrices(job) * ffn / tp,
        experts=2.0 * rows * config.hidden_size * matrices(job) * job.expert_ffn if is_moe else 0.0,
    )


def scoring_pass_flops(job: Job) -> float:
    """Forward FLOPs of one microbatch's scoring pass in one layer on one rank: all tokens of the expert group
    through this rank's shards of its experts."""
    config = job.transformer
    tokens = job.sharded_tokens * job.sizes.ep * job.sizes.etp
    experts = (config.num_moe_experts or 0) / job.sizes.ep
    return 2.0 * tokens * experts * config.hidden_size * matrices(job) * job.expert_ffn / job.sizes.etp


def output_flops(job: Job) -> float:
    """Forward FLOPs of one microbatch's logits on one rank of the last stage."""
    return 2.0 * job.tokens * job.transformer.hidden_size * job.args.padded_vocab_size / job.sizes.tp


def matrices(job: Job) -> int:
    """Matrices H x F of an MLP: three where it is gated."""
    return 3 if job.transformer.gated_linear_unit else 2
