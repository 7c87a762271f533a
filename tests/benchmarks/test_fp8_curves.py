"""Loss curves of two precisions: compared as they should be, by a script that trains."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.fp8_curves import RUNS, WINDOW, command, largest_difference, smoothed

ROOT = Path(__file__).resolve().parents[2]


def test_curves_are_compared_after_smoothing() -> None:
    flat = [2.0] * 100
    noisy = [2.0 + (0.1 if step % 2 else -0.1) for step in range(100)]
    assert len(smoothed(flat)) == 100 - WINDOW + 1
    assert largest_difference(noisy, flat) == pytest.approx(0, abs=1e-12)
    assert largest_difference([2.1] * 100, flat) == pytest.approx(0.05)
    assert largest_difference([*flat[:90], *[3.0] * 10], flat) == pytest.approx(0.5 * 10 / WINDOW)


@pytest.mark.parametrize("run", RUNS)
def test_every_run_is_a_command_of_the_trainer(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Megatron's parser and checks, and ours, take the flags as they would be given on a GPU."""
    import torch
    from megatron.training.arguments import parse_args, validate_args

    from megatron_compete.config import CompeteConfig
    from megatron_compete.moe.validation import check_supported
    from megatron_compete.plan.pretend import pretended_gpu
    from megatron_compete.training.arguments import add_arguments
    from megatron_compete.training.model import transformer_config

    with pretended_gpu():
        line = command(run, 300, Path("text"), Path("logs"), ["--seed", "3"])
        monkeypatch.setattr(sys, "argv", line[2:])
        args = parse_args(add_arguments)
        assert torch.cuda.is_available()
        args.rank, args.world_size = 0, 1
        validate_args(args)
        check_supported(transformer_config(args), CompeteConfig.from_arguments(args))
    assert args.train_iters == 300 and args.moe_grouped_gemm and args.seed == 3
    assert args.bf16 == (run != "fp32")
    assert (args.fp8, args.fp8_recipe) == {
        "delayed": ("hybrid", "delayed"), "tensorwise": ("hybrid", "tensorwise"), "blockwise": ("hybrid", "blockwise"),
    }.get(run, (None, "delayed"))  # fmt: skip


@pytest.mark.slow
def test_script_trains_and_compares(tmp_path: Path) -> None:
    script = [sys.executable, "benchmarks/fp8_curves.py", "--steps", "6", "--timeout", "300"]
    paths = ["--json", str(tmp_path / "curves.json"), "--figure", str(tmp_path / "curves.png"), "--logs", str(tmp_path)]
    done = subprocess.run([*script, *paths], cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    found = json.loads((tmp_path / "curves.json").read_text())
    assert found["reference"] == "fp32" and found["failed"] == []
    fp32, bf16 = found["losses"]["fp32"], found["losses"]["bf16"]
    assert len(fp32) == len(bf16) == 6 and fp32 != bf16 and fp32[-1] < fp32[0]
    assert found["largest_difference"] == {"bf16": pytest.approx(largest_difference(bf16, fp32))}
    assert found["largest_difference"]["bf16"] < 0.01
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert "iteration" in (tmp_path / "bf16.log").read_text()
