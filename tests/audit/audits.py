"""A small audit by hand, for tests of what is written of one."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_compete.audit.results import Against, Audit, Competition, Experts, Interval, LayerAudit, Regret, Use

EXPERTS, TOP_K, DOMAINS = 4, 2, ("books", "code")


def layer_audit(layer: int, **more: object) -> LayerAudit:
    """A layer with every part."""
    use = Use([0.5, 0.3, 0.2, 0.0], [[0.6, 0.4, 0.0, 0.0], [0.4, 0.2, 0.4, 0.0]], [3], 0.74, 0.8, 0.1, 0.2, 0.6, [(0, 1, 0.9)])  # fmt: skip
    names = ("utility", "response", "drop top-1", "drop top-2", "random", "all")
    changes = {
        name: Interval(0.01 * place, 0.01 * place - 0.02, 0.01 * place + 0.02) for place, name in enumerate(names)
    }
    made = LayerAudit(
        layer,
        f"model.layers.{layer}.mlp",
        EXPERTS,
        TOP_K,
        use,
        Competition(512, 0.4, 0.55, [0.25] * 4, [0.4, 0.3, 0.2, 0.1]),
        Regret(256, changes),
        Experts(0.1, 0.02, -0.3, 3.5, [(0, 2, 0.4)]),
        Against(0.9, 0.2, 0.05, 0.01, [0, 2, 1, 3], 2),
    )
    return dataclasses.replace(made, **more)  # type: ignore[arg-type]


def small_audit(layers: int = 2, **more: object) -> Audit:
    """An audit with every part."""
    made = Audit(
        checkpoint="runs/small/hf",
        architecture="Qwen3MoeForCausalLM",
        dtype="float32",
        parameters=1_000_000,
        layers=[layer_audit(layer) for layer in range(layers)],
        domains=list(DOMAINS),
        tokens_by_domain=[1000, 1048],
        text="0" * 64,
        sequence_length=128,
        sequences=16,
        loss=Interval(2.5, 2.4, 2.6),
        loss_by_domain=[2.4, 2.6],
        against="runs/earlier/audit",
        cost={"use": 1.5, "competition": 3.0, "peak memory bytes": 1e9},
    )
    return dataclasses.replace(made, **more)  # type: ignore[arg-type]


def audit_of(layers: Sequence[LayerAudit], **more: object) -> Audit:
    """The small audit with other layers."""
    return dataclasses.replace(small_audit(0), layers=list(layers), **more)  # type: ignore[arg-type]


def matrices(layers: int = 2) -> dict[str, Tensor]:
    """Every matrix of those layers."""
    names = ("coactivation", "output_similarity", "weight_similarity", "router_similarity")
    return {f"{name}.{layer}": torch.eye(EXPERTS) * 0.5 + 0.25 for name in names for layer in range(layers)}
