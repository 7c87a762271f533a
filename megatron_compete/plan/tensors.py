"""Parameter tensors of one kind and size."""

from dataclasses import dataclass

from megatron_compete.vlm.config import Part
from megatron_compete.vlm.layer_names import PART_NAMES

OF_LINEAR_LAYERS = frozenset(
    {"attention", "gated delta net", "mamba", "mlp", "experts", "shared experts", "latent projections", "projection"}
)
"""Kinds that are matrices of linear layers, which FP8 quantises and Muon orthogonalises; the others are the router,
embeddings, the output head and vectors."""


@dataclass(frozen=True)
class Tensors:
    """`count` parameter tensors of one kind and size on a rank."""

    kind: str
    """attention, gated delta net, mamba, norm, router, latent projections, experts, shared experts, mlp, projection,
    embedding, positions, patches or output."""

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
    """Of weights that another stage holds too: tied output weights, the embedding of multi-token prediction."""

    mtp: bool = False
    """Whether multi-token prediction alone uses them."""

    part: Part = "language"
    """Of the model."""

    frozen: bool = False
    """Whether they are not trained: no gradient, no optimizer."""

    @property
    def full_kind(self) -> str:
        """The kind, with the name of a part before the decoder."""
        return self.kind if self.part == "language" else f"{PART_NAMES[self.part]} {self.kind}"

    @property
    def on_rank(self) -> int:
        """Elements on one rank."""
        return self.elements * self.count

    @property
    def total(self) -> int:
        """Elements in the model, each counted once."""
        return 0 if self.is_copy else self.on_rank * self.shards
