"""Floating-point operations (FLOPs) of a job's parts, on all ranks together for whole steps and on one rank for one layer.

A GEMM of m x k by k x n is 2 m k n FLOPs; a backward pass is twice a forward one. Norms, activations, the softmax
and the response are left out, as Megatron leaves them out.
"""

from dataclasses import dataclass

from megatron.training.training import num_floating_point_operations

from megatron_compete.plan.job import Job
from megatron_compete.plan.layers import LayerKind, Mixer
from megatron_compete.plan.mixer_parameters import GdnShape, LatentShape, MambaShape
from megatron_compete.training.flops import scoring_flops

MAMBA_SCAN = 7
"""FLOPs of Mamba's scan for a token, channel and state (as Megatron counts it)."""


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
    competing = job.compete.token_fraction * job.step_tokens
    layer = scoring_flops(job.args, competing, job.compete.response_gradients, job.compete.kind)
    most = min(job.schedule.max_active, job.schedule.num_layers)
    mean = job.schedule.rate * job.schedule.num_layers
    return StepFLOPs(normal, layer, normal + most * layer, normal + mean * layer)


@dataclass(frozen=True)
class LayerFlops:
    """Forward FLOPs of one microbatch in one layer on one rank."""

    projections: float
    """Of what mixes tokens: matrices before and after its core."""
    core: float
    """Attention's scores and their product with the values, the causal half; or a scan."""
    mlp: float
    """Of a dense MLP or shared experts, and of latent projections."""
    experts: float


def layer_flops(job: Job, kind: LayerKind) -> LayerFlops:
    """One rank's share of one layer; routed rows are even over ranks."""
    from megatron_compete.plan.activations import capacity_share

    config, tokens, tp = job.transformer, job.tokens, job.sizes.tp
    projections, core = _mixer(job, kind.mixer) if kind.mixer is not None else (0.0, 0.0)
    ffn = (config.moe_shared_expert_intermediate_size or 0) if kind.is_moe else config.ffn_hidden_size
    mlp = 2.0 * tokens * config.hidden_size * matrices(job) * ffn / tp if kind.mlp is not None else 0.0
    experts = 0.0
    if kind.is_moe:
        rows = job.sharded_tokens * config.moe_router_topk * capacity_share(job)
        experts = (
            2.0 * rows * job.expert_width * matrices(job) * job.expert_ffn
        )  # each of an expert's shards has a part
        if config.moe_latent_size:
            mlp += 4.0 * job.sharded_tokens * config.hidden_size * job.expert_width
    return LayerFlops(projections=projections, core=core, mlp=mlp, experts=experts)


def _mixer(job: Job, mixer: Mixer) -> tuple[float, float]:
    """Of the matrices, and of the core."""
    config, tokens, tp, hidden = job.transformer, job.tokens, job.sizes.tp, job.transformer.hidden_size
    if mixer == "attention":
        queries, keys = (config.kv_channels * n for n in (config.num_attention_heads, config.num_query_groups))
        gate = queries if config.attention_output_gate else 0
        matrices_out = hidden * (2 * queries + gate + 2 * keys)
        return 2.0 * tokens * matrices_out / tp, 2.0 * tokens * job.args.seq_length * queries / tp
    if mixer == "mla":
        return _latent(job)
    if mixer == "gdn":
        gdn = GdnShape.of(job)
        matrices_out = hidden * (2 * gdn.keys + 3 * gdn.values + 2 * gdn.value_heads)
        scan = gdn.taps * (2 * gdn.keys + gdn.values) + 4 * gdn.values * gdn.value_head
        return 2.0 * tokens * matrices_out / tp, 2.0 * tokens * scan / tp
    mamba = MambaShape.of(job)
    matrices_out = hidden * (3 * mamba.inner + 2 * mamba.state + mamba.heads)
    return 2.0 * tokens * matrices_out / tp, MAMBA_SCAN * tokens * mamba.inner / tp * config.mamba_state_dim


def _latent(job: Job) -> tuple[float, float]:
    """Down projections are run whole by every tensor parallel rank for its share of the tokens."""
    latent, hidden, tp = LatentShape.of(job), job.transformer.hidden_size, job.sizes.tp
    down = hidden * (latent.query_rank + latent.rank + latent.rotary)
    up = (latent.query_rank or hidden) * latent.queries + latent.rank * latent.keys_and_values + hidden * latent.values
    projections = 2.0 * job.sharded_tokens * down + 2.0 * job.tokens * up / tp
    return projections, job.tokens * job.args.seq_length * (latent.queries + latent.values) / tp


def scoring_pass_flops(job: Job) -> float:
    """Forward FLOPs of one microbatch's scoring pass in one layer on one rank: competing tokens of the expert group through
    this rank's shards of its experts; in a latent mixture each token's projection, and each answer's or, by utility, each
    gradient's."""
    config = job.transformer
    tokens = job.competing_tokens * job.sizes.ep * job.sizes.etp
    experts = (config.num_moe_experts or 0) / job.sizes.ep
    scored = 2.0 * tokens * experts * job.expert_width * matrices(job) * job.expert_ffn / job.sizes.etp
    if not job.args.moe_latent_size:
        return scored
    by_utility = job.compete is not None and job.compete.kind == "utility"
    projected = 2 if by_utility else 1 + (config.num_moe_experts or 0)
    return scored + 2.0 * job.competing_tokens * projected * config.hidden_size * job.args.moe_latent_size


def output_flops(job: Job) -> float:
    """Forward FLOPs of one microbatch's logits on one rank of the last stage, those of multi-token prediction included."""
    once = 2.0 * job.tokens * job.transformer.hidden_size * job.args.padded_vocab_size / job.sizes.tp
    return once * (1 + job.layers.mtp_depths)


def mtp_flops(job: Job) -> float:
    """Forward FLOPs of one microbatch's joint projections in multi-token prediction, on a rank that has it."""
    return 4.0 * job.tokens * job.transformer.hidden_size**2 / job.sizes.tp * job.layers.mtp_depths


def matrices(job: Job) -> int:
    """Matrices H x F of an MLP: three where it is gated."""
    return 3 if job.transformer.gated_linear_unit else 2
