"""Experts that transformers 5 stores fused, all of a layer in one tensor, as the tensors of single experts.

transformers holds `mlp.experts.gate_up_proj` [E, 2F, H] and `mlp.experts.down_proj` [E, H, F] in memory, and writes them so
with `save_original_format=False`; the hub's checkpoints have the tensors of each expert (upstream: conversion_mapping.py).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from megatron_compete.checkpoint.families import FAMILIES
from megatron_compete.checkpoint.families.key_table import ALL_EXPERTS
from megatron_compete.checkpoint.families.qwen3_moe import QWEN3_MOE
from megatron_compete.checkpoint.reader import TensorInfo

ROUTER = "decoder.layers.*.mlp.router.weight"
DOWN = "decoder.layers.*.mlp.experts.experts.*.linear_fc2.weight"
FUSED = re.compile(r"model\.layers\.(?P<layer>\d+)\.mlp\.experts\.(?P<kind>gate_up_proj|down_proj)")


@dataclass(frozen=True)
class FusedSlice:
    """A tensor of the hub's names in one that is stored."""

    stored: str
    index: tuple[int, ...]
    rows: tuple[int, int]
    """Of the slice at `index`."""
    info: TensorInfo

    def of(self, slice_: Tensor) -> Tensor:
        """Its rows of the slice at `index`."""
        return slice_[self.rows[0] : self.rows[1]]


def unfused(stored: Mapping[str, TensorInfo], model_type: str) -> dict[str, FusedSlice]:
    """By the hub's names, what fused tensors hold, and the router beside them where it is named otherwise."""
    family = FAMILIES.get(model_type)
    if family and any(part in ALL_EXPERTS for key in family.keys for part in key.parts):
        return {}  # its own names are those of fused tensors
    names, parts = _hub_names(model_type), {}
    for name, info in stored.items():
        found = FUSED.fullmatch(name)
        if not found or len(info.shape) != 3 or not all(info.shape[1:]):
            continue
        experts, rows, columns = info.shape
        half, layer = rows // 2, found["layer"]
        kinds = {"down": (0, rows)} if found["kind"] == "down_proj" else {"gate": (0, half), "up": (half, rows)}
        for kind, (start, end) in kinds.items():
            part_info = TensorInfo((end - start, columns), info.dtype)
            for expert in range(experts):
                part = FusedSlice(name, (expert,), (start, end), part_info)
                parts[names[kind].replace("*", layer, 1).replace("*", str(expert))] = part
        gate, router = f"model.layers.{layer}.mlp.gate.weight", names["router"].replace("*", layer)
        if gate in stored and router != gate:
            parts[router] = FusedSlice(gate, (), (0, stored[gate].shape[0]), stored[gate])
    return parts


def _hub_names(model_type: str) -> dict[str, str]:
    """Names of an expert's gate, up and down and of the router, from the family's key table.

    A model of no family here, or of one without experts, names them as most do.
    """
    family = FAMILIES.get(model_type)
    names: dict[str, str] = {}
    for key in family.keys if family else ():
        if key.parts == ("gate", "up") and key.axes == 2:
            names |= dict(zip(key.parts, key.names))
        elif DOWN in key.megatron:
            names["down"] = key.names[0]
        elif ROUTER in key.megatron:
            names["router"] = key.names[0]
    return names or _hub_names(QWEN3_MOE.name)
