"""Megatron's cache of dataset indices: a kill leaves no half of a file in it.

Megatron takes a cache for complete when its files are there. The last of them is there as soon as its write begins, so a
kill at that moment leaves a file that every later start tries to read. Here each file is written under another name and
renamed; one that is damaged all the same (by Megatron itself, or a full disk) is named with the way out.
"""

import contextlib
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy

from megatron_compete.common.errors import CompeteError
from megatron_compete.common.files import open_whole
from megatron_compete.upstream import replace_symbol, wrap_symbol


@contextlib.contextmanager
def whole_files() -> Iterator[None]:
    """Within it, Megatron's datasets write whole cache files, and name a damaged one.

    Raises:
        CompeteError: a cache file cannot be read.
    """
    ours = _Numpy()
    with (
        replace_symbol("megatron.core.datasets.gpt_dataset:numpy", ours),
        replace_symbol("megatron.core.datasets.blended_dataset:numpy", ours),
        wrap_symbol("megatron.core.datasets.gpt_dataset:safe_numpy_load", _load),
        wrap_symbol("megatron.core.datasets.blended_dataset:safe_numpy_load", _load),
    ):
        yield


class _Numpy:
    """numpy, whose `save` replaces files in one step."""

    def __getattr__(self, name: str) -> Any:
        return getattr(numpy, name)

    @staticmethod
    def save(path: str, array: Any, **options: Any) -> None:
        """`numpy.save`."""
        with open_whole(Path(path)) as file:
            numpy.save(file, array, **options)


def _load(upstream: Callable[..., Any], path: str, *args: Any, **options: Any) -> Any:
    """`safe_numpy_load`, which names a file that it cannot read."""
    try:
        return upstream(path, *args, **options)
    except FileNotFoundError as error:
        raise CompeteError(
            f"{path} is not there: build the cache with one run without --dataloader-fast-cache-load"
        ) from error
    except (ValueError, EOFError, pickle.UnpicklingError) as error:
        raise CompeteError(f"{path} is damaged ({error}): remove it, and the next start builds it anew") from error
