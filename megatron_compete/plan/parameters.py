"""Parameters of a job's model: exactly the tensors that Megatron builds, per layer, pipeline stage and rank.

Shapes follow megatron/core: `SelfAttention`, `MLP`, `Router`, `SharedExpertMLP`, `LanguageModelEmbedding`, `GPTModel`.
H hidden size, F hidden size of an MLP, E experts, Q and G widths of queries and of keys (all heads, all groups).
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

from megatron_compete.plan.job import Job


@dataclass(frozen=True)
class Tensors:
    """`count` parameter tensors of one kind and size on a rank."""

    kind: str
    """attention, norm, router, experts, shared experts, mlp, embedding, positions or output."""

    elements: int
    """Of one such tensor on one rank."""

    count: int = 1
    shards: int = 1
    """Ranks that hold a different part of the model's: 1 for what all have alike."""

    expert: bool = False
    """Whether the gradient is summed over the experts' own data parallel ranks. Megatron gives experts buffers of their
    own only where they are split otherwise than the rest (`use_expert_pgs`, megatron/core/tensor_parallel/layers.py)."""

    active_share: float = 1.0
    """Share of the parameters that one token meets."""

    is_copy: bool = False
    """Tied output weights, which the last stage holds beside the first one's embedding."""

    @property
    def on_rank(self) -> int:
        """Elements on one rank."""
        return self.elements * self.count

    @property
    def total(self) -> int:
        """Elements in the model, each counted once."""
        return 0 if self.is_copy else self.on_rank * self.shards


@dataclass(frozen=True)
class Parameters:
    """The parameters of a model, and of a rank of each of its model chunks."""

    total: int
    active: int
    """That one token meets."""

    by_kind: dict[str, int]
    tensors_PV: tuple[tuple[tuple[Tensors, ...], ...], ...]
    """What a rank holds of each stage's model chunks."""

    def on_rank(self, stage: int, expert: bool | None = None) -> int:
        """Elements on a rank of a stage; of experts, of the rest, or of both."""
        return sum(
            tensors.on_rank
            for chunk in self.tensors_PV[stage]
            for tensors in chunk
            if expert is None or tensors.expert == expert
        )


def count_parameters(job: Job) -> Parameters:
    """All parameters of a job's model."""
    chunks_PV = tuple(
        tuple(tuple(_chunk(job, stage, chunk)) for chunk in range(job.sizes.vp)) for stage in range(job.sizes.pp)
    )
    tensors = [tensors for chunks in chunks_PV for chunk in chunks for tensors in chunk]
    by_kind: dict[str, int] = {}
    for item in tensors:
        by_kind[item.kind] = by_kind.get(item.kind, 0) + item.total
    return Parameters(
        total=sum(by_kind.values()),
        active=round(sum(item.total * item.active_share for item in tensors)),
        by_kind=by_kind,
        tensors_PV=chunks_PV,
    )


def _chunk(job: Job, stage: int, chunk: int) -> Iterator[Tensors]:
    """What a rank holds of one model chunk."""
    first = stage == 0 and chunk == 0
    last = stage == job.sizes.pp - 1 and chunk == job.sizes.vp - 1
    if first:
        yield from _embedding(job)
    for number in job.layers_PV[stage][chunk]:
        yield from _layer(job, number in job.moe_layers)
    if last:
        yield from _norm(job, job.transformer.hidden_size)
        yield from _output(job, beside_embedding=first)


def _embedding(job: Job) -> Iterator[Tensors]:
    hidden, tp = job.transformer.hidden_size, job.sizes.tp
    yield Tensors("embedding", job.args.padded_vocab_size // tp * hidden, shards=tp)
    if job.args.position_embedding_type == "learned_absolute":
        yield Tensors("positions", job.args.max_position_embeddings * hidden)


def _output(job: Job, beside_embedding: bool) -> Iterator[Tensors]:
    tied = not job.args.untie_embeddings_and_output_weights
    if tied and beside_embedding:
        return
    tp = job.sizes.tp
    yield Tensors("output", job.args.padded_vocab_size // tp * job.transformer.hidden_size, shards=tp, is_copy=tied)


def _layer(job: Job, is_moe: bool) -> tuple[Tensors, ...]:
    return _layer_of(_Shape.of(job), is_moe)


@dataclass(frozen=True)
class _Shape:
    """What a layer's tensors depend on; layers of a kind are counted once."""

    hidden: int
    queries: int
    keys: int
    head: int
    qk_norm: bool
    norm_tensors: int
    """1: RMSNorm, 2: LayerNorm's weight and bias."""
    qkv_bias: bool
    bias: bool
    matrices_in: int
    """Matrices H x F of an MLP: 2 where it is gated."""
    ffn: int
    expert_ffn: int
    shared_ffn: int
    shared_gate: bool
    experts: int
    topk: int
    tp: int
    ep: int
    etp: int

    @classmethod
    def of(cls, job: Job) -> "_Shape":
        config, sizes = job.transformer, job.sizes
        return cls(
            hidden=config.hidden_size,
            queries=config.kv_channels * config.num_attention_heads,
            keys=config.kv_channels * config.num_query_groups,
            head=config.kv_channels,
            qk_norm=config.qk_layernorm,
            norm_tensors=1 if config.normalization == "RMSNorm" else 2,
            qkv_bias=config.add_bias_linear or config.add_qkv_bias,
            bias=config.add_bias_linear,
            matrices_in=2 if config.gated_linear_unit else 1,
            ffn=config.ffn_hidden_size,
            expert_ffn=job.expert_ffn,
            shared_ffn=config.moe_shared_expert_intermediate_size or 0,
            shared_gate=bool(config.moe_shared_expert_gate),
            experts=config.num_moe_experts or 0,
            topk=config.moe_router_topk,
            tp=sizes.tp,
            ep=sizes.ep,
            etp=sizes.etp,
        )


def _norm(job: Job, size: int) -> Iterator[Tensors]:
    yield Tensors("norm", size, count=_Shape.of(job).norm_tensors)


@functools.cache
def _layer_of(s: _Shape, is_moe: bool) -> tuple[Tensors, ...]:
    tensors = [Tensors("norm", s.hidden, count=2 * s.norm_tensors), *_attention(s)]
    tensors += _moe(s) if is_moe else _mlp(s, "mlp", s.ffn, s.bias)
    return tuple(tensors)


def _attention(s: _Shape) -> Iterator[Tensors]:
    qkv = s.queries + 2 * s.keys
    yield Tensors("attention", s.hidden * qkv // s.tp, shards=s.tp)
    yield Tensors("attention", s.queries // s.tp * s.hidden, shards=s.tp)
    if s.qkv_bias:
        yield Tensors("attention", qkv // s.tp, shards=s.tp)
    if s.bias:
        yield Tensors("attention", s.hidden)
    if s.qk_norm:
        yield Tensors("norm", s.head, count=2 * s.norm_tensors)


def _mlp(s: _Shape, kind: str, ffn: int, bias: bool) -> Iterator[Tensors]:
    yield Tensors(kind, s.hidden * s.matrices_in * ffn // s.tp, shards=s.tp)
    yield Tensors(kind, ffn // s.tp * s.hidden, shards=s.tp)
    if bias:
        yield Tensors(kind, s.matrices_in * ffn // s.tp, shards=s.tp)
        yield Tensors(kind, s.hidden)


def _moe(s: _Shape) -> Iterator[Tensors]:
    yield Tensors("router", s.experts * s.hidden)
    if s.bias:
        yield Tensors("router", s.experts)
    sizes = [s.hidden * s.matrices_in * s.expert_ffn // s.etp, s.expert_ffn // s.etp * s.hidden]
    if s.bias:  # only without expert tensor parallelism
        sizes += [s.matrices_in * s.expert_ffn, s.hidden]
    for size in sizes:
        yield Tensors(
            "experts",
            size,
            count=s.experts // s.ep,
            shards=s.ep * s.etp,
            expert=s.ep > 1 or s.etp != s.tp,
            active_share=s.topk / s.experts,
        )
    if s.shared_ffn:
        yield from _mlp(s, "shared experts", s.shared_ffn, bias=False)
        if s.shared_gate:
            yield Tensors("shared experts", s.hidden)
