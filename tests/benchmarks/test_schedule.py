"""The schedule's benchmark: the plain procedure keeps the limit, and the script runs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.schedule import PLAIN, plain_procedure
from tests.warm import run_script

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks/schedule.py"


def test_the_plain_procedure_moves_and_keeps_the_limit() -> None:
    table = plain_procedure(num_layers=6, rate=0.3, max_active=2, num_steps=2000, seed=3)
    assert table.sum(axis=1).max() == 2
    assert np.abs(table.mean(axis=0) - 0.3).max() < 0.05
    full = plain_procedure(num_layers=2, rate=1.0, max_active=1, num_steps=50, seed=3)
    assert full.sum() == 50 and full[:, 0].all()  # the first layer in order takes every place


def test_the_script_measures_all_policies(tmp_path: Path) -> None:
    flags = ["--steps", "2000", "--layers", "8", "--max-active", "2"]
    report = tmp_path / "schedule.json"
    command = [sys.executable, str(SCRIPT), *flags, "--queries", "500", "--json", str(report)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = json.loads(report.read_text())["rows"]
    assert [row["policy"] for row in rows] == ["balanced", "shifted", "bernoulli", PLAIN]
    assert all(row["table_seconds"] > 0 for row in rows)
    assert "2,000 steps x 8 layers" in done.stdout
    refused = run_script(SCRIPT, *flags, "--rate", "0.9", cwd=ROOT)
    assert refused.returncode == 2 and "raise it to 8" in refused.stderr
