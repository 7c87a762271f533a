"""Shared by all tests."""

import functools
import os
import sys

import pytest

from megatron_compete.launch.launchers import CPU_WARNINGS, openmp_defaults
from tests.shared import Shared, once, shared_folder

for name, value in openmp_defaults(on_cpu=True).items():
    os.environ.setdefault(name, value)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PYTHONWARNINGS", ",".join(f"ignore:{message}" for message in CPU_WARNINGS))


LONG = ("recipes", "study", "training", "moe", "data", "checkpoint", "plan", "benchmarks")
"""Folders whose files take longest. They go first and in this order, so that at the end no worker waits long for another:
a file is one worker's."""


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """`shared(make, *args)` is `make(*args)`, made once for all workers."""
    return functools.partial(once, shared_folder(tmp_path_factory))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order by folder; skip what is marked `gpu` on hosts without CUDA, with the reason."""
    import torch

    for name in ("CI", "BUILD_NUMBER"):  # pytest shows whole differences there, which takes minutes for a large table
        os.environ.pop(name, None)
    if "megatron.training" in sys.modules:
        from tests import docstrings

        docstrings.read_once()
    items.sort(key=_place)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _place(item: pytest.Item) -> int:
    return next((place for place, folder in enumerate(LONG) if folder in item.path.parts), len(LONG))
