"""Megatron's compiled dataset helpers, where its wheel brings them.

The trainer runs `make` for them when it starts, and ends the job where that fails. The wheel on PyPI holds the compiled
helpers but no Makefile, so with it no training would start.
"""

from pathlib import Path


def use_prebuilt_helpers() -> None:
    """Keep the trainer from compiling what is there; a source tree, which has a Makefile, goes on as ever."""
    import megatron.core.datasets.utils as utils

    folder = Path(utils.__file__).parent
    if not (folder / "Makefile").exists() and any(folder.glob("helpers_cpp.*.so")):
        utils.compile_helpers = _nothing


def _nothing() -> None:
    """There is nothing to compile."""
