"""What a plan takes a vision-language model's samples to be, and what the parts before the decoder see of them.

How many pictures a sample has is in the data, which a plan does not read. It takes for granted that every sample has one:
one tile of it, or all that --use-tiling allows. Packed conversations fill a sequence, and so do as many pictures as fit.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from megatron_compete.plan.layers import LayerKind, Mlp
from megatron_compete.vlm.config import Part
from megatron_compete.vlm.parts import VisionLanguageConfig


@dataclass(frozen=True)
class Vision:
    """Tower and projector, and the pictures of a sample."""

    config: VisionLanguageConfig
    tiles: int
    """Of a sample."""
    packed: bool

    @classmethod
    def of(cls, args: argparse.Namespace, config: VisionLanguageConfig) -> "Vision":
        """Of validated arguments."""
        of_picture = args.max_num_tiles + args.use_thumbnail if args.use_tiling else 1
        pictures = max(1, args.seq_length // (of_picture * config.image_embeddings)) if args.pack_conversations else 1
        return cls(config, of_picture * pictures, args.pack_conversations)

    def sequence_length(self, part: Part) -> int:
        """Tokens of a tile in tower or projector."""
        return self.config.tower_tokens if part == "vision" else self.config.image_embeddings

    def layer_kind(self, part: Part) -> LayerKind:
        """What the layers of tower or projector are."""
        mlp: Mlp = "moe" if self.config.transformer_of(part).num_moe_experts else "mlp"
        return LayerKind("attention", mlp) if part == "vision" else LayerKind(None, mlp, normed=False)

    def assumptions(self) -> Iterator[str]:
        """What a plan says of these."""
        tiles = "one tile" if self.tiles == 1 else f"{self.tiles} tiles"
        of_sequence = "packed sequence" if self.packed else "sample"
        yield (
            f"every {of_sequence} has pictures of {tiles}, {self.config.image_embeddings} embeddings each; samples of text "
            "alone would leave tower and projector almost idle"
        )
        if not self.packed:
            yield "samples fill --seq-length; shorter ones are padded to the longest of their microbatch alone"
        if not self.config.trains("language"):
            yield "a frozen decoder keeps the activations of a trained one, which is more than it needs"
