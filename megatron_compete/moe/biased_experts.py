"""Experts with biases of Megatron's own linear layers.

An expert adds its second bias to its output in place (upstream: `MLP.forward`). Where neither experts nor their weights
are spread over ranks, that output is a view that an autograd function returned, and torch refuses to change it.
"""

import dataclasses
import functools
from typing import Any

from megatron.core.tensor_parallel.layers import RowParallelLinear
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoESubmodules
from torch import Tensor


class OwnedRowLinear(RowParallelLinear):
    """`RowParallelLinear` whose output is its caller's to change."""

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """As upstream's."""
        output, bias = super().forward(input_)
        return (output if bias is None else output.clone()), bias


def with_biases(submodules: MoESubmodules) -> MoESubmodules:
    """The same modules, with local experts that may have biases; Transformer Engine's stay as they are."""
    experts: Any = submodules.experts
    if experts.func is not SequentialMLP or experts.keywords["submodules"].linear_fc2 is not RowParallelLinear:
        return submodules
    mlp = dataclasses.replace(experts.keywords["submodules"], linear_fc2=OwnedRowLinear)
    return dataclasses.replace(
        submodules, experts=functools.partial(experts.func, **(experts.keywords | {"submodules": mlp}))
    )
