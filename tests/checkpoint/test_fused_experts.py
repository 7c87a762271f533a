"""Fused experts' tensors by the hub's names, against the tensors of single experts that they were fused from."""

import pytest
import torch

from megatron_compete.checkpoint.fused_experts import unfused
from megatron_compete.checkpoint.reader import TensorInfo

EXPERTS, FFN, HIDDEN = 3, 4, 5


@pytest.mark.parametrize(
    ("model_type", "block", "names"),
    [("qwen3_moe", "mlp", ("gate_proj", "up_proj", "down_proj")), ("mixtral", "block_sparse_moe", ("w1", "w3", "w2"))],
)
def test_parts_are_the_single_experts(model_type: str, block: str, names: tuple[str, str, str]) -> None:
    gate, up = torch.randn(EXPERTS, FFN, HIDDEN), torch.randn(EXPERTS, FFN, HIDDEN)
    down, router = torch.randn(EXPERTS, HIDDEN, FFN), torch.randn(EXPERTS, HIDDEN)
    layer = "model.layers.7"
    stored = {
        f"{layer}.mlp.experts.gate_up_proj": torch.cat([gate, up], dim=1),
        f"{layer}.mlp.experts.down_proj": down,
        f"{layer}.mlp.gate.weight": router,
        "model.norm.weight": torch.ones(HIDDEN),
    }
    parts = unfused({name: TensorInfo(tuple(one.shape), one.dtype) for name, one in stored.items()}, model_type)
    found = {name: part.of(stored[part.stored][part.index]) for name, part in parts.items()}
    single = dict(zip(names, (gate, up, down)))
    wanted = {
        f"{layer}.{block}.experts.{expert}.{kind}.weight": tensor[expert]
        for kind, tensor in single.items()
        for expert in range(EXPERTS)
    }
    wanted |= {f"{layer}.{block}.gate.weight": router} if block != "mlp" else {}
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].equal(tensor) and parts[name].info.shape == tuple(tensor.shape), name


def test_other_tensors_are_left_alone() -> None:
    """Of another rank, without experts, or of a name that only resembles theirs."""
    shapes = {
        "model.layers.0.mlp.experts.gate_up_proj": (8, 5),
        "model.layers.1.mlp.experts.down_proj": (3, 0, 4),
        "model.layers.2.mlp.experts.gate_up_proj.bias": (3, 8, 5),
    }
    assert unfused({name: TensorInfo(shape, torch.float32) for name, shape in shapes.items()}, "qwen3_moe") == {}
