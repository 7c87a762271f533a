"""What an expert computes, in the terms that the kernels are compiled for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ExpertForm:
    """fc2(act(fc1 x)), or with a gate fc2(act(gate x) * (up x)) with gate above up in fc1."""

    hidden: int
    ffn: int
    activation: str
    gated: bool
    round_gate: bool = True
    """Whether act(gate x) is rounded to the precision before it is multiplied."""

    @property
    def fc1_rows(self) -> int:
        """Output channels of fc1."""
        return self.ffn * (2 if self.gated else 1)

    def operations(self) -> int:
        """Operations of the matrices for one token."""
        return 2 * self.hidden * (self.fc1_rows + self.ffn)
