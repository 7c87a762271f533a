"""Shared by all tests."""

import os

import pytest

from megatron_compete.launch.launchers import CPU_WARNINGS, openmp_defaults

for name, value in openmp_defaults(on_cpu=True).items():
    os.environ.setdefault(name, value)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PYTHONWARNINGS", ",".join(f"ignore:{message}" for message in CPU_WARNINGS))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` on hosts without CUDA, with the reason."""
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
