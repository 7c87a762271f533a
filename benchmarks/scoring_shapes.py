"""The layers whose scoring pass is measured: the authors' models, and two that are widely trained."""

from dataclasses import dataclass

from megatron_compete.moe.kernels.coverage import ExpertForm


@dataclass(frozen=True)
class Shape:
    """One rank's experts and the tokens that reach them in a chunk."""

    name: str
    form: ExpertForm
    experts: int
    topk: int
    tokens: int

    def flops(self) -> int:
        """FLOPs of the matrices in one scoring pass."""
        return self.tokens * self.experts * self.form.flops()


SHAPES = (
    Shape("154m", ExpertForm(512, 128, "relu", gated=False), experts=64, topk=8, tokens=8192),
    Shape("679m", ExpertForm(1024, 256, "relu", gated=False), experts=66, topk=8, tokens=8192),
    Shape("mixtral", ExpertForm(4096, 14336, "silu", gated=True), experts=8, topk=2, tokens=4096),
    Shape("30b-a3b", ExpertForm(2048, 768, "silu", gated=True), experts=16, topk=8, tokens=32768),
)
"""`examples/competesmoe_154m.yaml` and `_679m.yaml` with all experts on one rank, Mixtral 8x7B, and
`examples/moe_30b_a3b.yaml`: 16 of 128 experts, and the tokens of 8 ranks."""
