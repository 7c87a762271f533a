"""Floating-point operations (FLOPs) of a job's parts, on all ranks together for whole steps and on one rank for one layer.

A GEMM of m x k by k x n is 2 m k n FLOPs; a backward pass is twice a forward one. Norms, activations, the softmax
and the response are left out, as Megatron leaves them out.
"""

import copy
from dataclasses import dataclass

from megatron.training.training import num_floating_point_operations

from megatron_compete.plan.job import Job
from megatron_compete.plan.layers import LayerKind, Mixer
from megatron_compete.plan.mixer_parameters import GdnShape, LatentShape, MambaShape
from megatron_compete.training.flops import scoring_flops
from megatron_compete.vlm.config import Part

MAMBA_SCAN = 7
"""FLOPs of Mamba's scan for a token, channel and state (as Megatron counts it)."""


@dataclass(frozen=True)
class StepFLOPs:
    """FLOPs of a step over all ranks; recomputation not counted, as in Megatron's throughput."""

    normal: float
    """Megatron's count."""
    competing_layer: float
    """What one competing layer adds, in the mean over those that can compete."""
    competing_of_part: dict[Part, float]
    """What one adds in each part of the model that has any."""
    competing: float
    """A step at which A_max layers compete."""
    mean: float
    """At the schedule's mean rate."""


def step_flops(job: Job) -> StepFLOPs:
    """FLOPs of a global batch, as the trainer's log counts them."""
    normal = _normal_flops(job)
    if job.schedule is None or job.compete is None:
        return StepFLOPs(normal, 0.0, {}, normal, normal)
    of_part = {part.part: _competing_flops(part) for part in job.competing_parts}
    layers = sorted((of_part[part.part] for part in job.competing_parts), reverse=True)
    most = sum(layers[: job.schedule.max_active])
    mean = sum(layers) / len(layers)
    return StepFLOPs(normal, mean, of_part, normal + most, normal + job.schedule.rate * sum(layers))


def _normal_flops(job: Job) -> float:
    """Megatron's count of the decoder, and of tower and projector by the same rules; what is frozen has no products for its
    weights' gradients, and none at all in its backward pass where all before it is frozen too."""
    args = job.args
    if job.vision is not None and job.transformer.num_moe_experts is None:
        args = copy.copy(args)
        args.num_experts = None
    normal = float(num_floating_point_operations(args, args.global_batch_size))
    normal *= (1 + _backward_products(job)) / 3
    for part in job.parts[:-1]:
        layers = part.layers.decoder_PV[0][0]
        forward = patches_flops(part) + sum(layer_flops(part, kind).total for kind in layers)
        normal += (1 + _backward_products(part)) * forward * job.microbatches * job.sizes.dp
    return normal


def _backward_products(part: Job) -> int:
    return 2 if part.vision is None else part.vision.config.backward_products(part.part)


def _competing_flops(part: Job) -> float:
    """Of a step's scoring passes in one layer."""
    assert part.compete is not None
    competing, compete = part.compete.token_fraction, part.compete
    if part.part == "language":
        return scoring_flops(part.args, competing * part.step_tokens, compete.response_gradients, compete.kind)
    tokens = competing * part.tokens * part.microbatches * part.sizes.dp
    scored = tokens * (part.transformer.num_moe_experts or 0) * expert_flops(part)
    return 3.0 * scored if compete.response_gradients == "all" else scored


def patches_flops(part: Job) -> float:
    """Forward FLOPs of one microbatch's convolution of patches on the first stage's rank; 0 but in a tower."""
    if part.vision is None or part.part != "vision":
        return 0.0
    config = part.vision.config
    return 2.0 * part.sequences * config.patches * config.patch_values * part.transformer.hidden_size


def expert_flops(job: Job) -> float:
    """Forward FLOPs of one token in one whole expert."""
    return 2.0 * job.expert_ffn * ((matrices(job) - 1) * job.expert_width + job.expert_output)


@dataclass(frozen=True)
class LayerFlops:
    """Forward FLOPs of one microbatch in one layer on one rank."""

    projections: float
    """Of what mixes tokens: matrices before and after its core."""
    core: float
    """Attention's scores and their product with the values, of a decoder the causal half; or a scan."""
    mlp: float
    """Of a dense MLP or shared experts, and of latent projections."""
    experts: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.projections + self.core + self.mlp + self.experts


def layer_flops(job: Job, kind: LayerKind) -> LayerFlops:
    """One rank's share of one layer; routed rows are even over ranks."""
    from megatron_compete.plan.activations import capacity_share

    config, tokens, tp = job.transformer, job.tokens, job.sizes.tp
    projections, core = _mixer(job, kind.mixer) if kind.mixer is not None else (0.0, 0.0)
    ffn = (config.moe_shared_expert_intermediate_size or 0) if kind.is_moe else config.ffn_hidden_size
    widths = (matrices(job) - 1) * job.input_width + config.hidden_size
    mlp = 2.0 * tokens * widths * ffn / tp if kind.mlp is not None else 0.0
    experts = 0.0
    if kind.is_moe:
        rows = job.sharded_tokens * config.moe_router_topk * capacity_share(job)
        experts = rows * expert_flops(job)  # each of an expert's shards has a part
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
        seen = (2.0 if job.is_causal else 4.0) * tokens * job.sequence_length
        return 2.0 * tokens * matrices_out / tp, seen * queries / tp
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
    scored = tokens * experts * expert_flops(job) / job.sizes.etp
    if not config.moe_latent_size:
        return scored
    by_utility = job.compete is not None and job.compete.kind == "utility"
    projected = 2 if by_utility else 1 + (config.num_moe_experts or 0)
    return scored + 2.0 * job.competing_tokens * projected * config.hidden_size * config.moe_latent_size


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
