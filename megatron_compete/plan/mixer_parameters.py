"""Parameters of what mixes tokens: attention, multi-latent attention, gated delta nets and Mamba.

Upstream: `SelfAttention`, `MLASelfAttention`, `GatedDeltaNet`, `MambaMixer` of megatron/core.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from megatron_compete.plan.job import Job
from megatron_compete.plan.layers import Mixer
from megatron_compete.plan.tensors import Tensors

MAMBA_CONVOLUTION = 4
"""Taps of Mamba's convolution, upstream's `d_conv`, for which there is no flag."""


@dataclass(frozen=True)
class MixerShape:
    """What the tensors depend on; heads and widths are the model's, over all tensor parallel ranks."""

    hidden: int
    tp: int
    bias: bool
    qkv_bias: bool
    qk_norm: bool
    norm_tensors: int
    """1: RMSNorm, 2: LayerNorm's weight and bias."""
    heads: int
    queries: int
    keys: int
    head: int
    output_gate: bool
    learned_sink: bool
    """A learned logit for each head that no token has (`--softmax-type learnable`)."""
    latent: "LatentShape"
    gdn: "GdnShape"
    mamba: "MambaShape"

    @classmethod
    def of(cls, job: Job) -> "MixerShape":
        """Of a job."""
        config = job.transformer
        return cls(
            hidden=config.hidden_size,
            tp=job.sizes.tp,
            bias=config.add_bias_linear,
            qkv_bias=config.add_bias_linear or config.add_qkv_bias,
            qk_norm=config.qk_layernorm,
            norm_tensors=1 if config.normalization == "RMSNorm" else 2,
            heads=config.num_attention_heads,
            queries=config.kv_channels * config.num_attention_heads,
            keys=config.kv_channels * config.num_query_groups,
            head=config.kv_channels,
            output_gate=bool(config.attention_output_gate),
            learned_sink=config.softmax_type == "learnable",
            latent=LatentShape.of(job),
            gdn=GdnShape.of(job),
            mamba=MambaShape.of(job),
        )


@dataclass(frozen=True)
class LatentShape:
    """Multi-latent attention (DeepSeek-V2, arXiv 2405.04434 section 2.1); zeros without it."""

    query_rank: int = 0
    """Width of the queries' latent; 0: they are projected at once."""
    rank: int = 0
    """Width of the latent that keys and values are made of."""
    rotary: int = 0
    """Width of the key's rotary part, which all heads share."""
    queries: int = 0
    """Width of queries, and of keys with their rotary part, over all heads."""
    keys_and_values: int = 0
    """Width of keys without their rotary part, and of values, over all heads."""
    values: int = 0
    replicated: bool = True
    """Whether every tensor parallel rank has the down projections whole: Transformer Engine's layers, not the local."""

    @classmethod
    def of(cls, job: Job) -> "LatentShape":
        """Of a job."""
        config, heads = job.transformer, job.transformer.num_attention_heads
        if not config.multi_latent_attention:
            return cls()
        return cls(
            query_rank=config.q_lora_rank or 0,
            rank=config.kv_lora_rank,
            rotary=config.qk_pos_emb_head_dim,
            queries=heads * (config.qk_head_dim + config.qk_pos_emb_head_dim),
            keys_and_values=heads * (config.qk_head_dim + config.v_head_dim),
            values=heads * config.v_head_dim,
            replicated=config.transformer_impl != "local",
        )


@dataclass(frozen=True)
class GdnShape:
    """A gated delta net (arXiv 2412.06464)."""

    keys: int
    """Width of queries, and of keys."""
    values: int
    value_head: int
    value_heads: int
    taps: int

    @classmethod
    def of(cls, job: Job) -> "GdnShape":
        """Of a job; zeros where it has none."""
        config = job.transformer
        value_head, value_heads = config.linear_value_head_dim or 0, config.linear_num_value_heads or 0
        keys = (config.linear_key_head_dim or 0) * (config.linear_num_key_heads or 0)
        return cls(keys, value_head * value_heads, value_head, value_heads, config.linear_conv_kernel_dim or 0)


@dataclass(frozen=True)
class MambaShape:
    """A Mamba-2 mixer (arXiv 2405.21060)."""

    inner: int
    state: int
    """Width of B, and of C, over all groups."""
    heads: int

    @classmethod
    def of(cls, job: Job) -> "MambaShape":
        """Of a job."""
        config = job.transformer
        heads = config.mamba_num_heads or 2 * config.hidden_size // config.mamba_head_dim
        return cls(heads * config.mamba_head_dim, config.mamba_num_groups * config.mamba_state_dim, heads)


def mixer_tensors(s: MixerShape, mixer: Mixer) -> Iterator[Tensors]:
    """What a rank holds of one layer's mixer, without the norm before it."""
    yield from {"attention": _attention, "mla": _latent_attention, "gdn": _gdn, "mamba": _mamba}[mixer](s)


def _attention(s: MixerShape) -> Iterator[Tensors]:
    qkv = s.queries * (2 if s.output_gate else 1) + 2 * s.keys
    yield Tensors("attention", s.hidden * qkv // s.tp, shards=s.tp)
    yield Tensors("attention", s.queries // s.tp * s.hidden, shards=s.tp)
    if s.qkv_bias:
        yield Tensors("attention", qkv // s.tp, shards=s.tp)
    if s.bias:
        yield Tensors("attention", s.hidden)
    if s.qk_norm:
        yield Tensors("norm", s.head, count=2 * s.norm_tensors)
    yield from _sink(s)


def _sink(s: MixerShape) -> Iterator[Tensors]:
    if s.learned_sink:
        yield Tensors("attention", s.heads // s.tp, shards=s.tp)


def _latent_attention(s: MixerShape) -> Iterator[Tensors]:
    latent, shared = s.latent, 1 if s.latent.replicated else s.tp
    yield Tensors("attention", s.hidden * (latent.rank + latent.rotary) // shared, shards=shared)
    yield Tensors("attention", latent.rank * latent.keys_and_values // s.tp, shards=s.tp)
    yield Tensors("attention", latent.values // s.tp * s.hidden, shards=s.tp)
    if s.bias:
        yield Tensors("attention", s.hidden)
    if latent.query_rank:
        yield Tensors("attention", s.hidden * latent.query_rank // shared, shards=shared)
    yield Tensors("attention", (latent.query_rank or s.hidden) * latent.queries // s.tp, shards=s.tp)
    if s.qk_norm:
        yield Tensors("norm", latent.rank, count=s.norm_tensors)
        if latent.query_rank:
            yield Tensors("norm", latent.query_rank, count=s.norm_tensors)
    yield from _sink(s)


def _gdn(s: MixerShape) -> Iterator[Tensors]:
    """Queries, keys, values, output gate and two numbers a head from one matrix; a convolution; a gated norm."""
    gdn, kind = s.gdn, "gated delta net"
    into = 2 * gdn.keys + 2 * gdn.values + 2 * gdn.value_heads
    yield Tensors(kind, s.hidden * into // s.tp, shards=s.tp)
    yield Tensors(kind, (2 * gdn.keys + gdn.values) // s.tp * gdn.taps, shards=s.tp)
    yield Tensors(kind, gdn.value_heads // s.tp, count=2, shards=s.tp)
    yield Tensors("norm", gdn.value_head, count=s.norm_tensors)
    yield Tensors(kind, gdn.values // s.tp * s.hidden, shards=s.tp)


def _mamba(s: MixerShape) -> Iterator[Tensors]:
    """z, x, B, C and dt from one matrix; a convolution with bias over x, B and C; A, D and dt's bias; a gated norm."""
    mamba, convolved = s.mamba, s.mamba.inner + 2 * s.mamba.state
    yield Tensors("mamba", s.hidden * (2 * mamba.inner + 2 * mamba.state + mamba.heads) // s.tp, shards=s.tp)
    yield Tensors("mamba", convolved // s.tp * MAMBA_CONVOLUTION, shards=s.tp)
    yield Tensors("mamba", convolved // s.tp, shards=s.tp)
    yield Tensors("mamba", mamba.heads // s.tp, count=3, shards=s.tp)
    yield Tensors("norm", mamba.inner // s.tp, shards=s.tp)
    yield Tensors("mamba", mamba.inner // s.tp * s.hidden, shards=s.tp)
