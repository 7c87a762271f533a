"""The scoring kernels compile for Hopper without a GPU, and what they take of it."""

import functools
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

<<<<<<< HEAD
from tests.warm import run_warm
=======
import pytest
>>>>>>> gpu

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(ROOT / "benchmarks/kernel_resources.py")


@pytest.mark.parametrize("response", ["softplus", pytest.param("projection", marks=pytest.mark.slow)])
def test_kernels_compile_for_hopper_and_fit(tmp_path: Path, response: str) -> None:
    """Narrow and wide, both precisions: no spills, tensor cores of the generation, and 16 bytes a copy."""
    report = tmp_path / "resources.json"
<<<<<<< HEAD
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, SCRIPT, "--shape", "154m", "30b-a3b", "--json", str(report)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
=======
    done = run("--shape", "154m", "30b-a3b", "--response", response, "--json", str(report))
>>>>>>> gpu
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
    script = functools.partial(runpy.run_path, SCRIPT, run_name="__main__")
    done = run_warm(script, cwd=ROOT, environment=os.environ | {"TRITON_INTERPRET": "1"})
    assert done.returncode == 2 and "TRITON_INTERPRET" in done.stderr
