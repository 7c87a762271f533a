"""The smoke test of a GPU host: without one it says so, and a check that fails does not stop the rest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_smoke import CHECKS, FP8_RECIPES, compare, run_checks
from benchmarks.train_step import ROOT
from tests.warm import run_script


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    done = run_script(ROOT / "benchmarks/gpu_smoke.py", cwd=ROOT)
    assert done.returncode == 2 and "needs a CUDA device" in done.stderr


def test_all_checks_run_and_failures_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def broken() -> None:
        raise RuntimeError("no such kernel\nand more")

    assert run_checks({"first": broken, "second": lambda: None}) == ["first"]
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].endswith("FAILED  RuntimeError: no such kernel") and lines[1].endswith("ok")
    assert "and more" in printed.err


def test_results_are_compared() -> None:
    ones = torch.ones(4)
    compare(1.001 * ones, ones, 0.01)
    for wrong in (1.1 * ones, ones * float("nan")):
        with pytest.raises(AssertionError, match="off by"):
            compare(wrong, ones, 0.01)


def test_every_recipe_is_checked() -> None:
    for recipe in FP8_RECIPES:
        assert sum(recipe in name for name in CHECKS) == 2


@pytest.mark.gpu
def test_everything_works_here() -> None:
    environment = os.environ | {"NVIDIA_TF32_OVERRIDE": "0"}
    done = subprocess.run(
        [sys.executable, Path("benchmarks/gpu_smoke.py")], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
