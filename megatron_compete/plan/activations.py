"""Bytes that one microbatch leaves on a rank until its backward pass.

Counted after Korthikanti et al. (arXiv 2205.05198, section 4), tensor by tensor as autograd keeps them, for Megatron's
layers with fused attention, experts behind an all-to-all, and sequence parallelism; what mixes tokens is in
`plan/mixer_activations.py`. Token counts: T on this rank's attention, t = T / tensor parallel size in norms and MoE layers
under sequence parallelism. Routing is taken to be even: an expert rank gets t * K rows per rank of its expert tensor
parallel group, less what a capacity factor below 1 drops, more what `--moe-pad-expert-input-to-capacity` adds.

Under FP8 a linear layer keeps its input quantised, one byte an element and its scales. Everything else stays in bf16.
"""

from dataclasses import dataclass

from megatron_compete.plan.job import Job
from megatron_compete.plan.layers import LayerKind
from megatron_compete.plan.mixer_activations import MixerActivations, mixer_activations
from megatron_compete.plan.precision import linear_input_bytes
from megatron_compete.plan.scoring import fused_buffer_bytes, scoring_kernel

FP32 = 4
INT64 = 8


@dataclass(frozen=True)
class LayerActivations:
    """Bytes that a layer keeps of one microbatch, by part; recomputation and offloading not yet taken off."""

    layer_input: float
    """The residual stream, which a norm's backward pass needs; all that remains under full recomputation."""
    residual: float
    """The input of the second norm, and dropout's masks."""
    attention_norm: float
    """Output of the norm before the mixer, as its first linear layer keeps it."""
    mlp_norm: float
    """The same of the norm before the MLP; of a projector, what it gets."""
    mixer: MixerActivations
    mlp: float
    """Of a dense MLP, or of experts with their router and rows."""
    mlp_input: float
    """The part of `mlp` that experts get as rows."""
    mlp_activation: float
    """The part of `mlp` that `--recompute-modules moe_act` gives up."""
    shared_experts: float

    @property
    def norm_outputs(self) -> float:
        """What `--recompute-modules layernorm` gives up."""
        return self.attention_norm + self.mlp_norm

    @property
    def total(self) -> float:
        """All of it."""
        parts = self.layer_input + self.residual + self.norm_outputs + self.mixer.total + self.mlp
        return parts + self.shared_experts


def layer_activations(job: Job, kind: LayerKind) -> LayerActivations:
    """What a layer keeps of one microbatch without recomputation."""
    config, size = job.transformer, job.element_bytes
    elements = job.sharded_tokens * config.hidden_size
    stream, quantised = elements * size, job.sharded_tokens * job.input_width * linear_input_bytes(job)
    dropout = elements if config.hidden_dropout > 0 else 0.0
    mlp, rows, activation = (0.0, 0.0, 0.0)
    if kind.is_moe:
        mlp, rows, activation = _experts(job)
    elif kind.mlp == "mlp":
        mlp, activation = _mlp(job, config.ffn_hidden_size)
    shared = 0.0
    if kind.is_moe and config.moe_shared_expert_intermediate_size:
        shared = _mlp(job, config.moe_shared_expert_intermediate_size)[0] + quantised
    return LayerActivations(
        layer_input=stream if kind.norms else 0.0,
        residual=stream * max(0, kind.norms - 1) + kind.norms * dropout,
        attention_norm=quantised if kind.mixer is not None else 0.0,
        mlp_norm=_mlp_input(job, kind),
        mixer=mixer_activations(job, kind.mixer),
        mlp=mlp,
        mlp_input=rows,
        mlp_activation=activation if kind.is_moe else 0.0,
        shared_experts=shared,
    )


def _mlp_input(job: Job, kind: LayerKind) -> float:
    """What an MLP gets, as its first linear layer or, in the training precision, a router keeps it."""
    if kind.mlp is None:
        return 0.0
    return job.sharded_tokens * job.input_width * (job.element_bytes if kind.is_moe else linear_input_bytes(job))


def _mlp(job: Job, ffn: int) -> tuple[float, float]:
    """Output of the first matrices and of the activation; and the latter alone."""
    matrices = 2 if job.transformer.gated_linear_unit else 1
    elements = job.tokens * ffn / job.sizes.tp
    activation = elements * linear_input_bytes(job)
    return matrices * elements * job.element_bytes + activation, activation


def routed_rows(job: Job) -> float:
    """Rows that this rank's experts get of one microbatch, at even routing."""
    return job.sharded_tokens * job.transformer.moe_router_topk * job.sizes.etp * capacity_share(job)


def capacity_share(job: Job) -> float:
    """Rows that experts get for each that was routed to them: 1 without a capacity factor."""
    config = job.transformer
    factor = config.moe_expert_capacity_factor
    if factor is None:
        return 1.0
    return float(factor) if config.moe_pad_expert_input_to_capacity else min(1.0, factor)


def _experts(job: Job) -> tuple[float, float, float]:
    """Router, latent tokens, rows, both hidden layers of the experts; the rows alone; the activation's output alone."""
    config, size, quantised = job.transformer, job.element_bytes, linear_input_bytes(job)
    balances = job.compete is not None and job.competes and job.compete.router_balance_coeff > 0
    per_score = (3 if balances else 2) * FP32 + 1  # logits, probabilities (of the balance loss too), routing map
    router = job.sharded_tokens * (config.num_moe_experts or 0) * per_score
    latent = 2.0 * job.sharded_tokens * job.expert_width * size if config.moe_latent_size else 0.0
    rows, matrices = routed_rows(job), 2 if config.gated_linear_unit else 1
    inputs = rows * (job.expert_width * quantised + FP32)
    hidden = rows * job.expert_ffn / job.sizes.etp
    activation = hidden * quantised
    return router + latent + inputs + matrices * hidden * size + activation, inputs, activation


@dataclass(frozen=True)
class KeptActivations:
    """What recomputation leaves of a layer's activations."""

    per_microbatch: float
    """Until the backward pass, for every microbatch in flight."""
    live: float
    """Once a rank, while a layer is run again."""


def kept_activations(job: Job, kind: LayerKind) -> KeptActivations:
    """A layer's activations under `--recompute-granularity selective`, or none; offloaded modules are on the host."""
    layer = layer_activations(job, kind)
    modules = selected_modules(job)
    given_up = 0.0
    if "core_attn" in modules:
        given_up += layer.mixer.core
    if "mla_up_proj" in modules:
        given_up += layer.mixer.up_projections
    if "layernorm" in modules:
        given_up += layer.norm_outputs
    if "moe" in modules and kind.is_moe:
        given_up += layer.mlp + layer.shared_experts
    else:
        if "moe_act" in modules:
            given_up += layer.mlp_activation
        if "shared_experts" in modules:
            given_up += layer.shared_experts
        if "mlp" in modules and kind.mlp == "mlp":
            given_up += layer.mlp
    away = min(_offloaded(job, layer), layer.total - given_up)
    return KeptActivations(layer.total - given_up - away, given_up + away)


def selected_modules(job: Job) -> frozenset[str]:
    """Modules that are run again in the backward pass, `--recompute-modules`."""
    config = job.transformer
    return frozenset(config.recompute_modules or ()) if config.recompute_granularity == "selective" else frozenset()


def _offloaded(job: Job, layer: LayerActivations) -> float:
    """Bytes that `--fine-grained-activation-offloading` moves to the host, of the modules' inputs."""
    config = job.transformer
    if not config.fine_grained_activation_offloading:
        return 0.0
    parts = {
        "attn_norm": layer.layer_input, "qkv_linear": layer.attention_norm, "core_attn": layer.mixer.core_inputs,
        "attn_proj": layer.mixer.output, "mlp_norm": layer.residual, "expert_fc1": layer.mlp_input,
        "moe_act": layer.mlp_activation, "fused_group_mlp": layer.mlp_input + layer.mlp_activation,
    }  # fmt: skip
    away = sum(parts.get(str(module), 0.0) for module in config.offload_modules or ())
    return float(away * (1.0 if config.activation_offload_fraction is None else config.activation_offload_fraction))


def recomputes_layers(job: Job) -> bool:
    """Whether whole layers are run again in the backward pass; a projector is none of a transformer's."""
    return job.transformer.recompute_granularity == "full" and job.part != "projector"


def recomputes_experts(job: Job) -> bool:
    """Whether MoE layers are run again in the backward pass, whole or as a module."""
    return recomputes_layers(job) or "moe" in selected_modules(job)


def chunk_activations(job: Job, kinds: tuple[LayerKind, ...], mtp_depths: int = 0) -> KeptActivations:
    """Activations of one model chunk: of one microbatch, and what recomputation holds at a time.

    Args:
        kinds: its layers, those of multi-token prediction included.
        mtp_depths: depths of multi-token prediction in the chunk.
    """
    joined = mtp_depths * mtp_activations(job)
    if not recomputes_layers(job):
        parts = [kept_activations(job, kind) for kind in kinds]
        on_host = min(len(parts), job.transformer.cpu_offloading_num_layers if job.transformer.cpu_offloading else 0)
        kept = sum(part.per_microbatch for part in parts[on_host:])
        return KeptActivations(joined + kept, max([part.live for part in parts], default=0.0))
    whole = [layer_activations(job, kind) for kind in kinds]
    count = job.transformer.recompute_num_layers or 1
    if job.transformer.recompute_method == "block":
        kept = sum(layer.layer_input for layer in whole[:count]) + sum(layer.total for layer in whole[count:])
        return KeptActivations(joined + kept, max([layer.total for layer in whole[:count]], default=0.0))
    inputs = sum(layer.layer_input for layer in whole[::count])
    if job.args.distribute_saved_activations:
        inputs /= job.sizes.tp
    groups = [sum(layer.total for layer in whole[start : start + count]) for start in range(0, len(whole), count)]
    return KeptActivations(joined + inputs, max(groups, default=0.0))


def vision_activations(part: Job) -> KeptActivations:
    """Of a tower, its pictures included, or of a projector; without trained weights or gradients to hand back there are none."""
    if not (part.trains or part.gradients_reach):
        return KeptActivations(0.0, 0.0)
    layers = chunk_activations(part, part.layers.decoder_PV[0][0])
    if part.part == "projector":
        return layers
    assert part.vision is not None
    config, elements = part.vision.config, part.tokens * part.transformer.hidden_size
    pictures = part.sequences * config.patches * config.patch_values
    normed = elements if config.class_tokens else 0  # a clip tower's norm before its first layer
    return KeptActivations(layers.per_microbatch + (pictures + normed) * part.element_bytes, layers.live)


def mtp_activations(job: Job) -> float:
    """Around one depth of multi-token prediction: embedding and hidden states with their norms' outputs, which are
    joined on every tensor parallel rank, and the final norm's input and output."""
    stream = job.sharded_tokens * job.transformer.hidden_size * job.element_bytes
    joined = 2.0 * job.tokens * job.transformer.hidden_size * linear_input_bytes(job)
    return 4.0 * stream + joined


def output_activations(job: Job) -> float:
    """Of the last stage: the final norm, and for the loss and each depth of multi-token prediction logits and the softmax
    that it keeps in fp32. One microbatch at a time."""
    stream = job.sharded_tokens * job.transformer.hidden_size * job.element_bytes
    logits = job.tokens * job.args.padded_vocab_size / job.sizes.tp * (job.element_bytes + FP32)
    return 2.0 * stream + (1 + job.layers.mtp_depths) * logits


def competing_activations(job: Job) -> KeptActivations:
    """What a competing layer keeps of one microbatch beside a normal one's, `moe/layer.py` and `moe/losses.py`.

    The winners' rows [t, K, H] stay for their weights, and in fp32 for the response and twice for the diversity loss,
    which keeps their sum [t, H] too; of [t, E] two fp32 tensors more than at a normal step stay. Where MoE layers are recomputed only the outcome (responses, scores, winners)
    waits, and the rest is there for one layer at a time. By utility only the logits and the router's choice wait, `moe/utility.py`,
    and of a sample of the tokens the layer's input.
    """
    config, tokens, width = job.transformer, job.competing_tokens, job.expert_output
    experts, winners = config.num_moe_experts or 0, config.moe_router_topk
    if job.by_utility:
        of_a_score = {"fp32": 4, "fp64": 8}.get(config.moe_router_dtype, job.element_bytes) + 1
        inputs = job.input_width * job.element_bytes if tokens < job.sharded_tokens else 0
        kept = float(tokens * (experts * of_a_score + inputs))
        return KeptActivations(0.0, kept) if recomputes_experts(job) else KeptActivations(kept, 0.0)
    casts = 0 if job.element_bytes == FP32 else 2 * FP32
    rows = tokens * winners * width * (job.element_bytes + casts)
    units = tokens * (winners + 1) * width * FP32 if winners > 1 else 0
    whole = rows + units + 2.0 * tokens * experts * FP32
    if not recomputes_experts(job):
        return KeptActivations(whole, 0.0)
    return KeptActivations(tokens * (2.0 * experts * FP32 + winners * INT64), whole)


def scoring_memory(job: Job) -> float:
    """What the scoring pass of one layer holds at a time, `moe/scoring.py`: a chunk's gathered tokens, the next
    chunk's on their way, and one expert; with the fused kernels what they write between their two halves instead."""
    assert job.compete is not None
    config, sizes, size = job.transformer, job.sizes, job.element_bytes
    width_in, width = job.expert_width, job.expert_output
    chunk, group = min(job.compete.score_chunk_tokens, job.competing_tokens), sizes.ep * sizes.etp
    matrices = 2 if config.gated_linear_unit else 1
    ffn, experts = job.expert_ffn / sizes.etp, (config.num_moe_experts or 0) / sizes.ep
    chunks = min(2, -(-job.competing_tokens // chunk))
    tokens = float(width_in * size * chunks) if group > 1 else 0.0
    running = max((matrices + 1) * ffn, ffn + width) * size
    casts = FP32 if size == FP32 else 2 * FP32
    if job.by_utility:  # the product of two factors, and the gathered gradients
        casts = FP32 if size == FP32 else 3 * FP32
        tokens += width * size / sizes.etp if sizes.ep > 1 else 0
    response = width * (size + casts / sizes.etp + (size if sizes.etp > 1 else 0))
    passing = fused_buffer_bytes(job) if scoring_kernel(job) != "plain" else max(running, response)
    held = chunk * group * (tokens + passing) + chunk * sizes.ep * experts * FP32
    if job.compete.response_gradients == "all":  # sums of all local experts' gradients, and one expert's
        held += 2 * (matrices * width_in + width) * ffn * experts * size
    return held
