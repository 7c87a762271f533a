"""The scoring pass leaves FP8, and leaves nothing behind in FP8 modules."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

KEPT = ("is_first_microbatch", "fp8", "fp8_initialized")
"""Attributes of Megatron's Transformer Engine modules that a pass changes: whether the next pass is the first since
weights changed, and whether the last one ran in FP8."""
META, CHECKPOINT = "fp8_meta", "fp8_checkpoint"
"""Transformer Engine's dictionary of a module's FP8 state, and the entry by which a checkpoint holds it or not."""


@contextlib.contextmanager
def without_fp8(config: TransformerConfig, *parts: torch.nn.Module) -> Iterator[None]:
    """Score in the activations' precision (bf16) where `parts`, the experts, train in FP8.

    FP8 modules keep a history of the largest values they saw, from which delayed scaling makes the next scales. In FP8
    a scoring pass would add to it the tokens that an expert does not win, and those that it wins a second time. Outside
    FP8 nothing is recorded.

    They also cast their weights to FP8 once a step, in the first microbatch, and Megatron's wrappers take any pass for
    that one. A scoring pass casts nothing; if it counted, the winners' pass would run on the previous step's weights.

    And a module takes the precision of its last pass for its own: by utility the scoring pass, in the backward pass, is
    the last of a step. A checkpoint would be saved without the history, and a recomputed pass not be known as one
    (upstream: `TransformerEngineBaseModule.get_extra_state` and `prepare_forward`).
    """
    if not config.fp8:
        yield
        return
    import transformer_engine.pytorch as te

    autocast = getattr(te, "autocast", None) or te.fp8_autocast  # its older name
    before = [(module, _state(module)) for part in parts for module in part.modules()]
    try:
        with autocast(enabled=False):
            yield
    finally:
        for module, state in before:
            _restore(module, state)


def _state(module: torch.nn.Module) -> dict[str, Any]:
    kept = {name: getattr(module, name) for name in KEPT if hasattr(module, name)}
    meta = getattr(module, META, {})
    return kept | ({CHECKPOINT: meta[CHECKPOINT]} if CHECKPOINT in meta else {})


def _restore(module: torch.nn.Module, state: dict[str, Any]) -> None:
    for name, value in state.items():
        if name == CHECKPOINT:
            getattr(module, META)[CHECKPOINT] = value
        else:
            setattr(module, name, value)
