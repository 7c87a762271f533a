"""Parameters of a job's model: exactly the tensors that Megatron builds, per layer, pipeline stage and rank.

Shapes of what mixes tokens are in `plan/mixer_parameters.py`. Here: `MLP`, `Router`, `MoELayer` (with its latent
projections), `SharedExpertMLP`, `LanguageModelEmbedding`, `MultiTokenPredictionLayer`, `GPTModel`, and of models with
a vision tower `CLIPViTModel` of megatron/core. H hidden size, F hidden size of an MLP, E experts.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from megatron_compete.plan.job import Job
from megatron_compete.plan.layers import LayerKind
from megatron_compete.plan.mixer_parameters import MixerShape, mixer_tensors
from megatron_compete.plan.tensors import Tensors

MTP = "multi-token prediction"


@dataclass(frozen=True)
class Parameters:
    """The parameters of a model, and of a rank of each of its model chunks."""

    total: int
    active: int
    """That one token meets, without multi-token prediction, which is for training alone."""

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
        kind = MTP if item.mtp else item.full_kind
        by_kind[kind] = by_kind.get(kind, 0) + item.total
    return Parameters(
        total=sum(by_kind.values()),
        active=round(sum(item.total * item.active_share for item in tensors if not item.mtp)),
        by_kind=by_kind,
        tensors_PV=chunks_PV,
    )


def _chunk(job: Job, stage: int, chunk: int) -> Iterator[Tensors]:
    """What a rank holds of one model chunk."""
    first = stage == 0 and chunk == 0
    last = stage == job.sizes.pp - 1 and chunk == job.sizes.vp - 1
    if first:
        yield from _vision(job)
    for item in _decoder_chunk(job, stage, chunk, first, last):
        yield replace(item, frozen=not job.trains)


def _vision(job: Job) -> Iterator[Tensors]:
    """Tower and projector, which the first stage holds whole."""
    for part in job.parts[:-1]:
        shape = _Shape.of(part)
        layers = [item for kind in part.layers.decoder_PV[0][0] for item in _layer_of(shape, kind)]
        for item in [*(_patches(part) if part.part == "vision" else ()), *layers]:
            yield replace(item, part=part.part, frozen=not part.trains)


def _patches(tower: Job) -> Iterator[Tensors]:
    """Of a tile's patches their convolution, positions and, in a clip tower, a class token and the first norm."""
    assert tower.vision is not None
    config, hidden = tower.vision.config, tower.transformer.hidden_size
    of_clip = config.class_tokens > 0
    yield Tensors("patches", hidden * config.patch_values)
    yield Tensors("positions", tower.sequence_length * hidden)
    yield Tensors("patches", hidden)  # siglip: the convolution's bias; clip: the class token
    if of_clip:
        yield Tensors("norm", hidden, count=2)


def _decoder_chunk(job: Job, stage: int, chunk: int, first: bool, last: bool) -> Iterator[Tensors]:
    predicts = job.layers.mtp_depths > 0 and (stage, chunk) == job.layers.mtp_place
    if first or predicts:
        yield from _embedding(job, is_copy=not first)
    shape = _Shape.of(job)
    for kind in job.layers.decoder_PV[stage][chunk]:
        yield from _layer_of(shape, kind)
    if (stage, chunk) == job.layers.final_norm_place:
        yield from _final_norm(job)
    if predicts:
        yield from (replace(item, mtp=True) for item in _mtp(job, shape))
    if last:
        yield from _output(job, beside_embedding=first)


def _final_norm(job: Job) -> Iterator[Tensors]:
    yield Tensors("norm", job.transformer.hidden_size, count=MixerShape.of(job).norm_tensors)


def _embedding(job: Job, is_copy: bool) -> Iterator[Tensors]:
    """Of the first stage; multi-token prediction on another stage has a copy."""
    hidden, tp = job.transformer.hidden_size, job.sizes.tp
    yield Tensors("embedding", job.args.padded_vocab_size // tp * hidden, shards=tp, is_copy=is_copy)
    if job.args.position_embedding_type == "learned_absolute":
        longest = job.args.max_position_embeddings if job.vision is None else job.args.seq_length
        yield Tensors("positions", longest * hidden, is_copy=is_copy)


def _output(job: Job, beside_embedding: bool) -> Iterator[Tensors]:
    tied = not job.args.untie_embeddings_and_output_weights
    if tied and beside_embedding:
        return
    tp = job.sizes.tp
    yield Tensors("output", job.args.padded_vocab_size // tp * job.transformer.hidden_size, shards=tp, is_copy=tied)


def _mtp(job: Job, shape: "_Shape") -> Iterator[Tensors]:
    """Each depth: norms of the hidden states and of the embeddings, their joint projection, layers, a final norm."""
    mixer, tp = shape.mixer, job.sizes.tp
    for _ in range(job.layers.mtp_copies):
        yield Tensors("norm", mixer.hidden, count=3 * mixer.norm_tensors)
        yield Tensors("projection", 2 * mixer.hidden * mixer.hidden // tp, shards=tp)
        for kind in job.layers.mtp:
            yield from _layer_of(shape, kind)


@dataclass(frozen=True)
class _Shape:
    """What a layer's tensors depend on; layers of a kind are counted once."""

    mixer: MixerShape
    matrices_in: int
    """Matrices H x F of an MLP: 2 where it is gated."""
    ffn: int
    expert_ffn: int
    input_width: int
    """Of what a layer gets; H but in a projector."""
    latent: int
    """Width of what experts get and give; H without latent experts. A projector's get `input_width`."""
    shared_ffn: int
    shared_gate: bool
    experts: int
    topk: int
    router_bias: bool
    ep: int
    etp: int

    @classmethod
    def of(cls, job: Job) -> "_Shape":
        config, sizes = job.transformer, job.sizes
        return cls(
            mixer=MixerShape.of(job),
            matrices_in=2 if config.gated_linear_unit else 1,
            ffn=config.ffn_hidden_size,
            expert_ffn=job.expert_ffn,
            input_width=job.input_width,
            latent=job.expert_output,
            shared_ffn=config.moe_shared_expert_intermediate_size or 0,
            shared_gate=bool(config.moe_shared_expert_gate),
            experts=config.num_moe_experts or 0,
            topk=config.moe_router_topk,
            router_bias=config.add_bias_linear and job.part == "language",
            ep=sizes.ep,
            etp=sizes.etp,
        )


@functools.cache
def _layer_of(s: _Shape, kind: LayerKind) -> tuple[Tensors, ...]:
    tensors = [Tensors("norm", s.mixer.hidden, count=kind.norms * s.mixer.norm_tensors)]
    if kind.mixer is not None:
        tensors += mixer_tensors(s.mixer, kind.mixer)
    if kind.mlp == "moe":
        tensors += _moe(s)
    elif kind.mlp == "mlp":
        tensors += _mlp(s, "mlp", s.ffn, s.mixer.bias)
    return tuple(tensors)


def _mlp(s: _Shape, kind: str, ffn: int, bias: bool) -> Iterator[Tensors]:
    hidden, tp = s.mixer.hidden, s.mixer.tp
    yield Tensors(kind, s.input_width * s.matrices_in * ffn // tp, shards=tp)
    yield Tensors(kind, ffn // tp * hidden, shards=tp)
    if bias:
        yield Tensors(kind, s.matrices_in * ffn // tp, shards=tp)
        yield Tensors(kind, hidden)


def _moe(s: _Shape) -> Iterator[Tensors]:
    hidden, bias = s.mixer.hidden, s.mixer.bias
    yield Tensors("router", s.experts * s.input_width)
    if s.router_bias:
        yield Tensors("router", s.experts)
    if s.latent != hidden:  # down to the experts' width and up again, whole on every tensor parallel rank
        yield Tensors("latent projections", hidden * s.latent, count=2)
        if bias:
            yield Tensors("latent projections", s.latent)
            yield Tensors("latent projections", hidden)
    width_in = s.input_width if s.latent == hidden else s.latent
    sizes = [width_in * s.matrices_in * s.expert_ffn // s.etp, s.expert_ffn // s.etp * s.latent]
    if bias:  # only without expert tensor parallelism
        sizes += [s.matrices_in * s.expert_ffn, s.latent]
    for size in sizes:
        yield Tensors(
            "experts",
            size,
            count=s.experts // s.ep,
            shards=s.ep * s.etp,
            expert=s.ep > 1 or s.etp != s.mixer.tp,
            active_share=s.topk / s.experts,
        )
    if s.shared_ffn:
        yield from _mlp(s, "shared experts", s.shared_ffn, bias=False)
        if s.shared_gate:
            yield Tensors("shared experts", hidden)
