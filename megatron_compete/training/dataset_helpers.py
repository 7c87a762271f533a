"""Megatron's compiled dataset helpers, where its wheel brings them.

The trainer runs `make` for them when it starts, and ends the job where that fails. The wheel on PyPI holds the compiled
helpers but no Makefile, so with it no training would start.
"""

import contextlib
from pathlib import Path

from megatron.core.datasets import utils

from megatron_compete.upstream import replace_symbol


def use_prebuilt_helpers() -> contextlib.ExitStack:
    """Keep the trainer from compiling what is there; a source tree, which has a Makefile, goes on as ever.

    Returns:
        What undoes it when it is closed.
    """
    undo, folder = contextlib.ExitStack(), Path(utils.__file__).parent
    if not (folder / "Makefile").exists() and any(folder.glob("helpers_cpp.*.so")):
        undo.enter_context(replace_symbol("megatron.core.datasets.utils:compile_helpers", _nothing))
    return undo


def _nothing() -> None:
    """There is nothing to compile."""
