"""The unattended suite for a GPU: it parses, skips cleanly, asks for commands that exist, and sums up what it finds."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_summary
from benchmarks.gpu_summary import MISSING, markdown, read_reports, summary, targets
from tests.warm import run_script

ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT / "benchmarks/gpu_suite.sh"
CASE = {"time_ratios": {"competing/normal": 3.0, "utility/normal": 2.5, "naive/competing": 2.6}, "steps": {"naive": {"peak": 70}, "competing": {"peak": 10}}}  # fmt: skip


def test_it_parses() -> None:
    subprocess.run(["bash", "-n", SUITE], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", SUITE], check=True)


@pytest.mark.slow  # ten interpreters that say the same; test_parts_that_fail_do_not_stop_the_next has the script's way
@pytest.mark.skipif(torch.cuda.is_available(), reason="here it would run")
def test_without_a_gpu_every_part_is_skipped_and_nothing_is_claimed(tmp_path: Path) -> None:
    (tmp_path / "train_step.json").write_text('{"amortised": 1.0}')  # of an earlier run
    done = subprocess.run(
        ["bash", SUITE, tmp_path],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"PYTHON": sys.executable},
    )
    assert done.returncode == 0, done.stderr
    assert "no CUDA device: every part is skipped" in done.stdout
    found = json.loads((tmp_path / "summary.json").read_text())
    assert {part["status"] for part in found["parts"]} == {"skipped"} and len(found["parts"]) == len(part_commands())
    assert {row["measured"] for row in found["rows"]} == {MISSING}
    assert "no CUDA device" in (tmp_path / "summary.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"summary.md", "summary.json", "logs.tar.gz"}


def test_a_wrong_call_is_refused(tmp_path: Path) -> None:
    assert subprocess.run(["bash", SUITE], capture_output=True).returncode == 2
    environment = os.environ | {"PYTHON": "no-such-python"}
    done = subprocess.run(["bash", SUITE, tmp_path], capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and "no interpreter no-such-python" in done.stderr


def part_commands(quick: bool = False) -> dict[str, list[str]]:
    """The suite's parts, or those of --quick: budget in seconds, then the arguments of the interpreter."""
    indent = "    " if quick else ""
    line = rf'^{indent}part (\w+) (\d+) (?:"\$\{{exact\[@\]\}}" )?"\$python" (.+)$'
    lines = re.findall(line, SUITE.read_text(), re.MULTILINE)
    return {name: [budget, *arguments.split()] for name, budget, arguments in lines}


@functools.cache
def usage(script: str) -> str:
    return run_script(ROOT / script, "--help", cwd=ROOT).stdout


def test_the_parts_fit_into_nine_minutes_and_their_flags_exist() -> None:
    parts, quick = part_commands(), part_commands(quick=True)
    assert list(parts)[:3] == ["smoke", "train_step", "scoring"] and list(quick)[:2] == ["smoke", "tests"]
    limits = [int(limit) for limit in re.findall(r"seconds=(\d+)", SUITE.read_text())]
    assert limits == [525, 150] and max(limits) <= 9 * 60 - 10
    for name, (_, script, *arguments) in [*parts.items(), *quick.items()]:
        if not (ROOT / script).exists():  # pytest
            continue
        arguments = arguments[: arguments.index("--")] if "--" in arguments else arguments
        for flag in (argument for argument in arguments if argument.startswith("--")):
            assert re.search(rf"{flag}\b", usage(script)), (name, flag)


INTERPRETER = """#!/usr/bin/env bash
case "$*" in
    *gpu_summary.py*) exec {python} "$@" ;;
    *train_step.py*--fp8*) echo '{{"legs": {{"topk": {{"ms": 3}}}}}}' >"${{@: -1}}" ;;
    *train_step.py*) echo "RuntimeError: no such kernel" >&2; exit 3 ;;
    *competition_step.py*) kill -SEGV $$ ;;
    *) echo "$NVIDIA_TF32_OVERRIDE fine" ;;
esac
"""
"""Believes in a GPU and in every module; some of the suite's commands fail in it."""


@pytest.mark.parametrize("quick", [False, True])
def test_parts_that_fail_do_not_stop_the_next(tmp_path: Path, quick: bool) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text(INTERPRETER.format(python=sys.executable))
    interpreter.chmod(0o755)
    out = tmp_path / "out"
    flags = ["--quick", out] if quick else [out]
    done = subprocess.run(
        ["bash", SUITE, *flags], capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHON": str(interpreter)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {part["name"]: part for part in json.loads((out / "summary.json").read_text())["parts"]}
    assert list(found) == list(part_commands(quick))
    failed = {"train_step": "3"} if quick else {"train_step": "3", "competition_step": "139"}
    assert {name: part["exit_code"] for name, part in found.items() if part["status"] == "failed"} == failed
    assert found["train_step"]["last_line"] == "RuntimeError: no such kernel"
    assert found["smoke"]["last_line"] == "0 fine"  # compared in fp32
    assert "RuntimeError: no such kernel" in done.stdout
    with tarfile.open(out / "logs.tar.gz") as logs:
        assert {f"logs/{name}.log" for name in found} <= set(logs.getnames())
    files = {path.name for path in out.iterdir()}
    assert files == {"summary.md", "summary.json", "logs.tar.gz"} | (set() if quick else {"train_step_fp8.json"})


def test_what_comes_back_is_little_and_plainly_named() -> None:
    """Some hosts hand back no more than eight files of a command."""
    names = [*(f"{name}.json" for name in gpu_summary.RESULTS), "summary.json", "summary.md", "logs.tar.gz"]
    assert len(names) <= 8 and all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in names)


def test_every_result_file_of_the_suite_is_read() -> None:
    written = set(re.findall(r"\$out/(\w+)\.json", SUITE.read_text())) - {"summary", "name"}
    assert written == set(gpu_summary.RESULTS) == {target.file for target in targets()}


def test_measured_numbers_stand_beside_the_targets(tmp_path: Path) -> None:
    shapes = {"154m": (0.5, 1.0), "mixtral": (0.7, 1.5), "30b-a3b": (0.55, 1.6)}
    scoring = {
        "results": [
            {"shape": {"name": name}, "variants": {"fused": {"share": share, "ms_all": [3 * gain]}, "fused-fp8": {"ms_all": [3.0]}}}
            for name, (share, gain) in shapes.items()
        ]
    }  # fmt: skip
    curves = {"steps": 300, "largest_difference": {"delayed": 0.004, "tensorwise": 0.02}}
    train = {"amortised": 1.07, "rate0": 1.03, "naive_over_compete": {"step": 2.0}, "legs": {"topk": {"ms": 50.0}}}
    reports = {
        "scoring": scoring, "train_step": train, "fp8_curves": curves, "competition_step": {"cases": [CASE]},
        "train_step_fp8": {"legs": {"topk": {"ms": 40.0}}},
    }  # fmt: skip
    for name, report in reports.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(report))
    found = summary(tmp_path, None, None)
    by_name = {row["what"]: (row["measured"], row["met"]) for row in found["rows"]}
    assert by_name["scoring pass over a large bf16 matmul, wide experts, the worse of two"] == ("55.00%", False)
    assert by_name["FP8 scoring over bf16 scoring, wide experts, the worse of two"] == ("1.500x", True)
    assert by_name["154M, mean step at rate 0.07, A_max 3, over stock top-K"] == ("1.070x", True)
    assert by_name["154M, step at rate 0 over stock top-K"] == ("1.030x", False)
    assert by_name["layer step competing by utility over a normal one, 154M"] == ("2.500x", None)
    assert by_name["naive layer step over ours, 154M"] == ("2.600x", True)
    assert by_name["its peak memory over ours, 154M"] == ("7.000x", True)
    assert by_name["naive layer step over ours, 679M"] == (MISSING, None)
    assert by_name["loss curve in FP8 (tensorwise) from bf16, 300 steps, largest difference"] == ("2.00%", False)
    assert by_name["loss curve in FP8 (blockwise) from bf16, 300 steps, largest difference"] == (MISSING, None)
    assert found["fp8_over_bf16_topk_step"] == pytest.approx(0.8)
    assert "| 154M, step at rate 0 over stock top-K | at most 1.020x | 1.030x | no |" in markdown(found)


def test_a_half_written_report_is_missing(tmp_path: Path) -> None:
    (tmp_path / "scoring.json").write_text('{"cases": [')
    assert read_reports(tmp_path) == {}


def test_short_curves_do_not_stand_for_300_steps(tmp_path: Path) -> None:
    (tmp_path / "fp8_curves.json").write_text(json.dumps({"steps": 20, "largest_difference": {"delayed": 0.001}}))
    rows = [row for row in summary(tmp_path, None, None)["rows"] if row["file"] == "fp8_curves.json"]
    assert {row["measured"] for row in rows} == {MISSING}
