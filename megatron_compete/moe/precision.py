"""The precision of the scoring pass under FP8 training."""

import contextlib
from collections.abc import Iterator

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

FLAG = "is_first_microbatch"
"""Attribute of Megatron's Transformer Engine modules: whether their next pass is the first since weights changed."""


@contextlib.contextmanager
def scoring_precision(config: TransformerConfig, experts: torch.nn.Module) -> Iterator[None]:
    """Score in the activations' precision (bf16) where experts train in FP8.

    FP8 modules keep a history of the largest values they saw, from which delayed scaling makes the next scales. Tokens
    that an expert only answers would enter it beside those that it wins, and the winners' a second time. Outside FP8
    nothing is recorded.

    They also cast their weights to FP8 once a step, in the first microbatch, and Megatron's wrappers take any pass for
    that one. A scoring pass casts nothing; if it counted, the winners' pass would run on the previous step's weights.
    """
    if not config.fp8:
        yield
        return
    import transformer_engine.pytorch as te

    autocast = getattr(te, "autocast", None) or te.fp8_autocast  # its older name
    first = {module: getattr(module, FLAG) for module in experts.modules() if hasattr(module, FLAG)}
    try:
        with autocast(enabled=False):
            yield
    finally:
        for module, value in first.items():
            setattr(module, FLAG, value)
