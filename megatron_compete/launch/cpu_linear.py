"""A linear layer that every tensor parallel rank holds whole, on a host without Transformer Engine's kernels.

Megatron has one in Transformer Engine's form alone (upstream: `TELinear` with `parallel_mode="duplicated"`), and builds
the projections of a latent MoE from it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class DuplicatedLinear(torch.nn.Linear):
    """Takes the place of `TELinear(..., parallel_mode="duplicated")`: the same arguments, weights and marks."""

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        parallel_mode: str | None,
        config: Any,
        init_method: Callable[[Tensor], object],
        bias: bool,
        skip_bias_add: bool,
        **kwargs: Any,
    ) -> None:
        assert parallel_mode == "duplicated" and not skip_bias_add, (parallel_mode, skip_bias_add)
        super().__init__(input_size, output_size, bias=bias, dtype=config.params_dtype)
        if config.perform_initialization:
            init_method(self.weight)
        if bias:
            torch.nn.init.zeros_(self.bias)
        for parameter in self.parameters():
            parameter.allreduce = True  # type: ignore[attr-defined]
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, input: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """Inputs [..., input_size] to outputs [..., output_size], and no bias apart."""
        return super().forward(input), None
