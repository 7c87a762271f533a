"""Competition with Transformer Engine's grouped experts, as far as a host without CUDA can tell."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(importlib.util.find_spec("transformer_engine") is None, reason="needs Transformer Engine")
@pytest.mark.skipif(torch.cuda.is_available(), reason="for hosts without CUDA; with it test_fp8.py runs the kernels")
def test_specs_and_grouped_experts_with_their_kernel_replaced() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.moe.te_on_cpu"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert "all checks passed" in done.stdout, done.stderr[-3000:]
