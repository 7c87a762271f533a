"""The variables that a rank starts with, and that OpenMP has read them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_compete.launch.launchers import environment_defaults, openmp_defaults

RANK = """
from megatron_compete.launch.launchers import become_rank
from megatron_compete.launch.recipe import MODULE

become_rank([MODULE])
import torch
"""
OPENMP = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")


def test_threads_of_a_cpu_rank_wait_without_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OPENMP:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert {name: environment_defaults()[name] for name in OPENMP} == openmp_defaults(on_cpu=True)
    assert environment_defaults()["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "OMP_WAIT_POLICY" not in environment_defaults()


def test_the_callers_own_values_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert not set(OPENMP) & set(environment_defaults())


@pytest.mark.parametrize("own", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}], ids=["default", "own"])
def test_openmp_has_read_what_a_rank_of_srun_or_mpirun_sets(own: dict[str, str]) -> None:
    """Which it does when torch is imported, and then prints."""
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("a host with GPUs, whose ranks keep OpenMP's default")
    clean = {name: value for name, value in os.environ.items() if name not in OPENMP}
    result = subprocess.run(
        [sys.executable, "-c", RANK], env=clean | own | {"OMP_DISPLAY_ENV": "true"}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert f"OMP_WAIT_POLICY = '{own.get('OMP_WAIT_POLICY', 'PASSIVE')}'" in result.stderr
    assert "OMP_NUM_THREADS = '1'" in result.stderr
