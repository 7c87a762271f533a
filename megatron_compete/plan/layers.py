"""What the layers of a model are, and on which pipeline stage and model chunk each lies.

A layer of a GPT mixes tokens (attention of some kind) and then has an MLP or experts; a layer of a hybrid model is one of
the two. Multi-token prediction (MTP) appends blocks: two norms and a projection of the hidden states beside the next
token's embedding, layers as in the decoder, a norm, and the output head once more (DeepSeek-V3, arXiv 2412.19437
section 2.2; upstream: `MultiTokenPredictionLayer`).
"""

import argparse
from dataclasses import dataclass
from typing import Literal

from megatron.core.models.hybrid.hybrid_layer_allocation import Symbols, parse_hybrid_pattern
from megatron.core.transformer.enums import LayerType
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_compete.moe.competition import decoder_stage_chunks, moe_layer_numbers

Mixer = Literal["attention", "mla", "gdn", "mamba"]
Mlp = Literal["mlp", "moe"]


@dataclass(frozen=True)
class LayerKind:
    """What a layer is made of; None where it has no such part."""

    mixer: Mixer | None
    """attention, mla (multi-latent attention), gdn (gated delta net) or mamba."""
    mlp: Mlp | None
    normed: bool = True
    """Whether a norm stands before each of them: before a projector there is none."""

    @property
    def is_moe(self) -> bool:
        """Whether it has experts."""
        return self.mlp == "moe"

    @property
    def norms(self) -> int:
        """Norms over the hidden size: one before each part."""
        return ((self.mixer is not None) + (self.mlp is not None)) * self.normed


OF_SYMBOL: dict[str, LayerKind] = {
    Symbols.MAMBA: LayerKind("mamba", None),
    Symbols.GDN: LayerKind("gdn", None),
    Symbols.ATTENTION: LayerKind("attention", None),
    Symbols.MLA: LayerKind("mla", None),
    Symbols.MLP: LayerKind(None, "mlp"),
    Symbols.MOE: LayerKind(None, "moe"),
}
"""Layers of `--hybrid-layer-pattern`."""

Chunks = tuple[tuple[tuple[LayerKind, ...], ...], ...]
"""The decoder's layers, [P][V]."""


@dataclass(frozen=True)
class Layers:
    """The layers of a model in its pipeline layout."""

    decoder_PV: Chunks
    mtp: tuple[LayerKind, ...] = ()
    """Layers of one depth of multi-token prediction."""
    mtp_depths: int = 0
    """Times that they run for a token."""
    mtp_copies: int = 0
    """Depths with parameters of their own; one under `--mtp-use-repeated-layer`."""
    mtp_place: tuple[int, int] = (0, 0)
    """Stage and chunk of all depths."""
    final_norm_place: tuple[int, int] = (0, 0)
    """Stage and chunk of the norm after the decoder."""

    @classmethod
    def of(cls, args: argparse.Namespace, transformer: TransformerConfig) -> "Layers":
        """Of validated arguments."""
        kinds, mtp = _kinds(args, transformer)
        stages, chunks = transformer.pipeline_model_parallel_size, transformer.virtual_pipeline_model_parallel_size or 1
        places = decoder_stage_chunks(transformer, args.hybrid_layer_pattern)
        decoder_PV = tuple(
            tuple(
                tuple(kind for kind, place in zip(kinds, places, strict=True) if place == (stage, chunk))
                for chunk in range(chunks)
            )
            for stage in range(stages)
        )
        depths = args.mtp_num_layers or 0
        copies = 1 if depths and args.mtp_use_repeated_layer else depths
        end = (stages - 1, chunks - 1)
        if depths and args.hybrid_layer_pattern is None:  # upstream: `has_final_layernorm_in_this_stage`
            end = places[-1]
        return cls(decoder_PV, mtp if depths else (), depths, copies, _mtp_place(transformer, stages, chunks), end)

    @classmethod
    def on_first_stage(cls, kind: LayerKind, count: int, stages: int) -> "Layers":
        """Layers of one kind before the decoder, whole on the first stage (a vision tower's, which has no virtual stages)."""
        return cls((((kind,) * count,), *(((),) for _ in range(stages - 1))))

    def run_by(self, stage: int, chunk: int) -> tuple[LayerKind, ...]:
        """Layers that a microbatch passes in a model chunk, those of multi-token prediction at every depth included."""
        here = self.decoder_PV[stage][chunk]
        return here + self.mtp * self.mtp_depths if self.mtp and (stage, chunk) == self.mtp_place else here

    @property
    def kinds(self) -> frozenset[LayerKind]:
        """All that occur."""
        return frozenset(kind for chunks in self.decoder_PV for chunk in chunks for kind in chunk) | frozenset(self.mtp)


def _kinds(
    args: argparse.Namespace, transformer: TransformerConfig
) -> tuple[tuple[LayerKind, ...], tuple[LayerKind, ...]]:
    """Of the decoder, and of one depth of multi-token prediction (upstream: `get_gpt_mtp_block_spec` takes the last)."""
    if args.hybrid_layer_pattern is not None:
        pattern = parse_hybrid_pattern(args.hybrid_layer_pattern)
        main = (pattern.main_pattern or "").replace(Symbols.PIPE, "")
        return tuple(OF_SYMBOL[one] for one in main), tuple(OF_SYMBOL[one] for one in pattern.mtp_pattern or "")
    attention: Mixer = "mla" if transformer.multi_latent_attention else "attention"
    with_experts = frozenset(moe_layer_numbers(transformer))
    decoder = tuple(
        LayerKind("gdn" if linear else attention, "moe" if number in with_experts else "mlp")
        for number, linear in enumerate(_is_linear(transformer), start=1)
    )
    return decoder, decoder[-1:]


def _is_linear(transformer: TransformerConfig) -> list[bool]:
    """Which layers of a GPT mix tokens by a gated delta net (upstream: `get_linear_attention_pattern`)."""
    frequency = transformer.linear_attention_freq
    if transformer.experimental_attention_variant != "gated_delta_net" or frequency is None:
        return [False] * transformer.num_layers
    if isinstance(frequency, int):
        return [number % frequency != 0 for number in range(1, transformer.num_layers + 1)]
    return [bool(linear) for linear in frequency[: transformer.num_layers]]


def _mtp_place(transformer: TransformerConfig, stages: int, chunks: int) -> tuple[int, int]:
    """The last stage's last chunk, or where a custom layout puts it (upstream: `get_mtp_num_layers_to_build`)."""
    layout = transformer.pipeline_model_parallel_layout
    if layout is not None:
        for stage in range(stages):
            for chunk in range(chunks):
                if LayerType.mtp in layout.layout[stage][chunk]:
                    return stage, chunk
    return stages - 1, chunks - 1
