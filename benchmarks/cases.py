"""The shapes that are measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One MoE layer: `tokens` per rank, gated experts of three matrices [hidden, ffn], expert parallel size `ep`."""

    tokens: int = 1024
    hidden: int = 512
    ffn: int = 1024
    experts: int = 16
    topk: int = 2
    ep: int = 2

    def __str__(self) -> str:
        return f"T={self.tokens} H={self.hidden} F={self.ffn}\nE={self.experts} K={self.topk} EP={self.ep}"

    def gflop(self) -> dict[str, float]:
        """Work of the experts' matrices per rank and step, in 10^9 operations.

        A forward pass counts 1 and a backward pass 2 for each token and expert: a normal step takes 3 K of them, a
        competing one E more for scoring, the naive one 3 E.
        """
        unit = self.tokens * 2 * 3 * self.hidden * self.ffn / 1e9
        return {
            "normal": 3 * self.topk * unit,
            "competing": (self.experts + 3 * self.topk) * unit,
            "naive": 3 * self.experts * unit,
        }


DEFAULT_CASES = (
    Case(),
    Case(tokens=512, experts=8),
    Case(tokens=512, ffn=128, experts=64, topk=8),
    Case(tokens=512, ep=1),
)
"""The headline shape; few experts; the proportions of the authors' 154M model; one rank."""
