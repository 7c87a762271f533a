"""What encodes a corpus: Megatron's own tokenizer, the reference, or an engine that gives the same ids faster.

choice.py        which engine: exact unless the user names one, and checking that one while it works
split.py         the reference on parts of a text that no piece crosses, each remembered: exact by construction
load.py          how each engine takes over a tokenizer that Megatron built
sample_check.py  is an engine that the user named identical to the reference, as far as a sample can tell?
"""

from megatron_compete.data.engines.choice import (
    AUTO,
    CHECK_EVERY,
    ENGINE_CHOICES,
    SAMPLED,
    BatchEncoder,
    EngineChoice,
    EngineDiffers,
    add_engine_flags,
    choose_engine,
    make_encoder,
)
from megatron_compete.data.engines.load import REFERENCE, SPLIT

__all__ = [
    "AUTO",
    "CHECK_EVERY",
    "ENGINE_CHOICES",
    "REFERENCE",
    "SAMPLED",
    "SPLIT",
    "BatchEncoder",
    "EngineChoice",
    "EngineDiffers",
    "add_engine_flags",
    "choose_engine",
    "make_encoder",
]
