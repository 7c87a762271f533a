"""The scoring kernels compile for Hopper without a GPU, and what they take of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.warm import run_script

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks/kernel_resources.py"


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(SCRIPT), *flags]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)


@pytest.mark.parametrize("response", ["softplus", pytest.param("projection", marks=pytest.mark.slow)])
def test_kernels_compile_for_hopper_and_fit(tmp_path: Path, response: str) -> None:
    """Narrow and wide, both precisions: no spills, tensor cores of the generation, and 16 bytes a copy."""
    report = tmp_path / "resources.json"
    done = run("--shape", "154m", "30b-a3b", "--response", response, "--json", str(report))
    assert done.returncode == 0, done.stderr
    rows = json.loads(report.read_text())["kernels"]
    assert {(row["experts"], row["fp8"]) for row in rows} >= {
        (s, fp8) for s in ("154m", "30b-a3b") for fp8 in (False, True)
    }
    for row in rows:
        assert row["spilled_bytes"] == 0 and row["programs_per_sm"] >= 1, row
        if row["kernel"] == "quantize_kernel":
            continue
        product = "QGMMA" if row["fp8"] else "HGMMA"
        assert any(name.startswith(product) for name in row["instructions"]), row
        assert "LDGSTS.E.BYPASS.128" in row["instructions"], row
        if row["kernel"] == "narrow_kernel" and not (row["fp8"] and response == "projection"):
            assert row["programs_per_sm"] == 2, row


def test_interpreted_kernels_are_refused() -> None:
    done = run_script(SCRIPT, cwd=ROOT, environment=os.environ | {"TRITON_INTERPRET": "1"})
    assert done.returncode == 2 and "TRITON_INTERPRET" in done.stderr
