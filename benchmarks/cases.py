"""The shapes that are measured."""

from dataclasses import dataclass, replace

ACTIVATIONS = ("swiglu", "relu")
"""Gated experts of three matrices, or plain ones of two."""


@dataclass(frozen=True)
class Case:
    """One MoE layer: `tokens` per rank, experts of matrices [hidden, ffn], expert parallel size `ep`."""

    tokens: int = 1024
    hidden: int = 512
    ffn: int = 1024
    experts: int = 16
    topk: int = 2
    ep: int = 2
    activation: str = "swiglu"
    """One of `ACTIVATIONS`."""

    def __str__(self) -> str:
        size = f"T={self.tokens} H={self.hidden} F={self.ffn}"
        return f"{size}\nE={self.experts} K={self.topk} EP={self.ep} {self.activation}"

    def for_check(self) -> "Case":
        """The case, or a smaller one like it: the steps are compared in fp32, which takes the room of several."""
        return replace(
            self, tokens=min(self.tokens, 1024), hidden=min(self.hidden, 512), ffn=min(self.ffn, 1024),
            experts=min(self.experts, 64),
        )  # fmt: skip

    def gflop(self, fraction: float = 1.0) -> dict[str, float]:
        """Work of the experts' matrices per rank and step, in 10^9 operations.

        A forward pass counts 1 and a backward pass 2 for each token and expert: a normal step takes 3 K of them, a
        competing one E more for scoring, by responses or by utility, of the `fraction` of the tokens that compete; the
        naive one 3 E.
        """
        matrices = 3 if self.activation == "swiglu" else 2
        unit = self.tokens * 2 * matrices * self.hidden * self.ffn / 1e9
        return {
            "normal": 3 * self.topk * unit,
            "competing": (fraction * self.experts + 3 * self.topk) * unit,
            "utility": (fraction * self.experts + 3 * self.topk) * unit,
            "naive": 3 * self.experts * unit,
        }


DEFAULT_CASES = (
    Case(),
    Case(tokens=512, experts=8),
    Case(tokens=512, ffn=128, experts=64, topk=8),
    Case(tokens=512, ep=1),
)
"""The headline shape; few experts; the proportions of the authors' 154M model; one rank."""

MODEL_CASES = (
    Case(tokens=8192, hidden=512, ffn=128, experts=64, topk=8, ep=1, activation="relu"),
    Case(tokens=8192, hidden=1024, ffn=256, experts=66, topk=8, ep=1, activation="relu"),
    Case(tokens=4096, hidden=4096, ffn=14336, experts=8, topk=2, ep=1),
    Case(tokens=4096, hidden=2048, ffn=768, experts=128, topk=8, ep=1),
)
"""On one GPU, a layer of: the authors' 154M and 679M models, Mixtral 8x7B, a 30B-A3B-class model."""

SAMPLE_CASES = (
    Case(tokens=4096, hidden=512, ffn=128, experts=64, topk=8, ep=1),
    Case(tokens=4096, ep=1),
)
"""On one rank with as many tokens as a microbatch has: narrow experts, and few."""

SUITES = {"default": DEFAULT_CASES, "models": MODEL_CASES, "sample": SAMPLE_CASES}
