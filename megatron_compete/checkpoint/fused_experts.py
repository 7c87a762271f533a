"""Experts that transformers 5 stores fused, all of a layer in one tensor, as the tensors of single experts.

transformers holds `mlp.experts.gate_up_proj` [E, 2F, H] and `mlp.experts.down_proj` [E, H, F] in memory, and writes them so
with `save_original_format=False`; the hub's checkpoints have the tensors of each expert (upstream: conversion_mapping.py).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from megatron_compete.checkpoint.reader import TensorInfo


@dataclass(frozen=True)
class Names:
    """Of the parts of a layer's experts in the hub's checkpoints."""

    block: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"


NAMES = {"mixtral": Names("block_sparse_moe", "w1", "w3", "w2")}
"""By model_type; others are as transformers names them."""

FUSED = re.compile(r"(?P<layer>model\.layers\.\d+)\.mlp\.experts\.(?P<kind>gate_up_proj|down_proj)")


@dataclass(frozen=True)
class Part:
    """A tensor of the hub's names in one that is stored."""

    stored: str
    index: tuple[int, ...]
    rows: tuple[int, int]
    """Of the slice at `index`."""
    info: TensorInfo

    def of(self, slice_: Tensor) -> Tensor:
        """The part of the slice at `index`."""
        return slice_[self.rows[0] : self.rows[1]]


def unfused(stored: Mapping[str, TensorInfo], model_type: str) -> dict[str, Part]:
    """By the hub's names, what fused tensors hold, and the router beside them where it is named otherwise."""
    names, parts = NAMES.get(model_type, Names()), {}
    for name, info in stored.items():
        found = FUSED.fullmatch(name)
        if not found or len(info.shape) != 3 or not all(info.shape[1:]):
            continue
        experts, rows, columns = info.shape
        half = rows // 2
        kinds = {names.gate: (0, half), names.up: (half, rows)}
        if found["kind"] == "down_proj":
            kinds = {names.down: (0, rows)}
        layer = f"{found['layer']}.{names.block}"
        for kind, (start, end) in kinds.items():
            part_info = TensorInfo((end - start, columns), info.dtype)
            for expert in range(experts):
                parts[f"{layer}.experts.{expert}.{kind}.weight"] = Part(name, (expert,), (start, end), part_info)
        gate = f"{found['layer']}.mlp.gate.weight"
        if gate in stored and names.block != "mlp":
            parts[f"{layer}.gate.weight"] = Part(gate, (), (0, stored[gate].shape[0]), stored[gate])
    return parts
