"""The scoring benchmark: its shapes are the recipes', and without a GPU it says so."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks.scoring import measure_all
from benchmarks.scoring_shapes import SHAPES, Shape
from megatron_compete.moe.kernels.coverage import ExpertForm
from tests.ranks import run_rank
from tests.warm import run_script

ROOT = Path(__file__).resolve().parents[2]


def recipe(name: str) -> dict:
    return yaml.safe_load((ROOT / "examples" / f"{name}.yaml").read_text())["arguments"]


@pytest.mark.parametrize(("shape", "name"), [("154m", "competesmoe_154m"), ("679m", "competesmoe_679m"), ("30b-a3b", "moe_30b_a3b")])  # fmt: skip
def test_shapes_are_the_recipes(shape: str, name: str) -> None:
    (found,) = [candidate for candidate in SHAPES if candidate.name == shape]
    settings = recipe(name)
    assert (found.form.hidden, found.form.ffn) == (settings["hidden-size"], settings["moe-ffn-hidden-size"])
    assert found.topk == settings["moe-router-topk"]
    assert found.form.gated == settings.get("swiglu", False)
    ranks = settings["expert-model-parallel-size"] if shape == "30b-a3b" else 1
    assert found.experts * ranks == settings["num-experts"]


def test_operations_are_those_of_the_products() -> None:
    gated, plain = ExpertForm(8, 4, "silu", gated=True), ExpertForm(8, 4, "relu", gated=False)
    assert gated.flops() == 2 * (8 * 4 * 3) and plain.flops() == 2 * (8 * 4 * 2)


def candidates() -> list[bool]:
    """Whether the first candidate of every kernel is the one in use."""
    from benchmarks.scoring_measure import tile_candidates
    from megatron_compete.moe.kernels.scorer import default_tiles

    cases = [(shape, fp8) for shape in SHAPES for fp8 in (False, True)]
    return [
        rows[0][1] == default_tiles(shape.form, fp8) and len(rows) > 1
        for shape, fp8 in cases
        for rows in tile_candidates(shape, fp8).values()
    ]


def test_tuning_starts_from_the_tiles_in_use() -> None:
    assert all(run_rank(candidates))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = run_script(ROOT / "benchmarks/scoring.py", "--shape", "154m", cwd=ROOT, environment=environment)
    assert done.returncode == 2
    assert "error: benchmarks/scoring.py cannot run here: there is no GPU" in done.stderr


def test_a_layer_that_fails_does_not_stop_the_next(capsys: pytest.CaptureFixture[str]) -> None:
    """And what was measured before is written by then."""

    def measure(shape: Shape) -> dict:
        if shape.name == "154m":
            raise RuntimeError("no such kernel")
        return {"variants": {}}

    written = []
    found = measure_all(list(SHAPES[:2]), measure, time.monotonic() + 60, lambda results: written.append(len(results)))
    assert written == [1, 2]
    assert [result.get("error") for result in found] == ["RuntimeError: no such kernel", None]
    assert "no such kernel" in capsys.readouterr().err
    late = measure_all(list(SHAPES), measure, time.monotonic() - 1, lambda results: None)
    assert {result["error"] for result in late} == {"no time left"}


@pytest.mark.gpu
def test_it_measures_on_a_gpu(tmp_path: Path) -> None:
    report = tmp_path / "scoring.json"
    for flags in ([], ["--tune"]):
        command = [
            sys.executable,
            "benchmarks/scoring.py",
            "--shape",
            "154m",
            "--rounds",
            "2",
            "--json",
            str(report),
            *flags,
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0 and report.exists(), done.stderr
