"""The precision of the scoring pass under FP8 training."""

import contextlib
from contextlib import AbstractContextManager

from megatron.core.transformer.transformer_config import TransformerConfig


def scoring_precision(config: TransformerConfig) -> AbstractContextManager[None]:
    """Score in the activations' precision (bf16) where experts train in FP8.

    FP8 modules keep a history of the largest values they saw, from which delayed scaling makes the next scales. Tokens
    that an expert only answers would enter it beside those that it wins, and the winners' a second time. Outside FP8
    nothing is recorded, and chunks need no padding to the GEMM's multiples.
    """
    if not config.fp8:
        return contextlib.nullcontext()
    from transformer_engine.pytorch import fp8_autocast

    return fp8_autocast(enabled=False)
