"""Bytes that what mixes tokens keeps of one microbatch: attention, multi-latent attention, gated delta nets and Mamba.

Multi-latent attention is trained with keys and values made from their latent for every head; Megatron has no training in
which the up projections are absorbed into queries and outputs. The chunked scans of gated delta nets and Mamba keep a
state a chunk, or make it again in the backward pass; the first is counted.
"""

from dataclasses import dataclass

from megatron_compete.plan.job import Job
from megatron_compete.plan.layers import Mixer
from megatron_compete.plan.mixer_parameters import GdnShape, LatentShape, MambaShape
from megatron_compete.plan.precision import linear_input_bytes

FP32 = 4

SCAN_CHUNK = 64
"""Tokens of a chunk of the gated delta rule (flash-linear-attention's kernels)."""

MAMBA_CHUNK = 128
"""Of Mamba's scan, upstream's `chunk_size`, for which there is no flag."""


@dataclass(frozen=True)
class MixerActivations:
    """Bytes by part."""

    inputs: float = 0.0
    """What linear layers before the core keep: latents and their norms; what a convolution keeps."""
    core_inputs: float = 0.0
    """Queries, keys and values as the core gets them, and an output gate."""
    up_projections: float = 0.0
    """The part of these that `--recompute-modules mla_up_proj` gives up."""
    core: float = 0.0
    """What the core keeps for itself, which `--recompute-modules core_attn` gives up."""
    output: float = 0.0
    """The core's output, which the output projection keeps."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.inputs + self.core_inputs + self.core + self.output


def mixer_activations(job: Job, mixer: Mixer | None) -> MixerActivations:
    """What a layer's mixer keeps."""
    if mixer is None:
        return MixerActivations()
    return {"attention": _attention, "mla": _latent_attention, "gdn": _gdn, "mamba": _mamba}[mixer](job)


def uses_fused_attention(job: Job) -> bool:
    """Whether attention keeps one statistic a row instead of the scores."""
    config = job.transformer
    return config.transformer_impl != "local" and config.attention_backend.name not in ("local", "unfused")


def query_groups(job: Job) -> float:
    """Query groups whose keys a rank holds; of fewer groups than tensor parallel ranks each has a whole one."""
    return max(1.0, job.transformer.num_query_groups / job.sizes.tp)


def _core(job: Job) -> float:
    """A statistic a row, or softmax and under dropout its mask and result: 5as^2b of the paper."""
    config, size, heads = job.transformer, job.element_bytes, job.transformer.num_attention_heads / job.sizes.tp
    if uses_fused_attention(job):
        return job.tokens * heads * FP32
    scores = job.sequences * heads * (job.sequence_length / job.sizes.cp) * job.sequence_length
    return float(scores * (2 * size + 1 if config.attention_dropout > 0 else size))


def _attention(job: Job) -> MixerActivations:
    """Queries, keys, values and output; what norms of queries and keys keep; a gate and the gated output."""
    config, tokens, size = job.transformer, job.tokens, job.element_bytes
    queries = config.num_attention_heads / job.sizes.tp * config.kv_channels
    keys = query_groups(job) * config.kv_channels
    inputs = tokens * (queries + keys) * size if config.qk_layernorm else 0.0
    gate = 2 * tokens * queries * size if config.attention_output_gate else 0.0
    return MixerActivations(
        inputs=inputs,
        core_inputs=tokens * (queries + 2 * keys) * size + gate,
        core=_core(job),
        output=tokens * queries * size,
    )


def _latent_attention(job: Job) -> MixerActivations:
    """Both latents before and after their norms, and queries, keys and values of all heads."""
    latent, tokens, size, tp = LatentShape.of(job), job.tokens, job.element_bytes, job.sizes.tp
    width = latent.query_rank + latent.rank
    latents = job.sharded_tokens * ((width + latent.rotary) * size + width * linear_input_bytes(job))
    made = tokens * (2 * latent.queries + latent.values) / tp * size
    return MixerActivations(
        inputs=latents,
        core_inputs=made,
        up_projections=made,
        core=_core(job),
        output=tokens * latent.values / tp * size,
    )


def _gdn(job: Job) -> MixerActivations:
    """The convolution's input and output, gate, two numbers a head, the scan's states, its output and the gated one."""
    gdn, tokens, size, tp = GdnShape.of(job), job.tokens, job.element_bytes, job.sizes.tp
    convolved = 2 * gdn.keys + gdn.values
    key_head = job.transformer.linear_key_head_dim or 0
    states = tokens / SCAN_CHUNK * gdn.values / tp * key_head * size
    return MixerActivations(
        inputs=tokens * convolved / tp * size,
        core_inputs=tokens * (convolved + gdn.values + 2 * gdn.value_heads) / tp * size,
        core=states,
        output=2.0 * tokens * gdn.values / tp * size,
    )


def _mamba(job: Job) -> MixerActivations:
    """The projection's output, of which the fused kernel makes the convolution again, the scan's states, and its output."""
    mamba, tokens, size, tp = MambaShape.of(job), job.tokens, job.element_bytes, job.sizes.tp
    projected = 2 * mamba.inner + 2 * mamba.state + mamba.heads
    states = tokens / MAMBA_CHUNK * mamba.inner / tp * job.transformer.mamba_state_dim * FP32
    return MixerActivations(
        inputs=0.0,
        core_inputs=tokens * projected / tp * size,
        core=states,
        output=2.0 * tokens * mamba.inner / tp * size,
    )
