"""Whole runs: what is logged, that it repeats, and that the truth can be learned."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_compete.study.regions.train import main
from tests.warm import run_warm

ROOT = Path(__file__).resolve().parents[3]
SHORT = "--train-iters 30 --probe-interval 10 --probe-sequences 512 --moe-router-pre-softmax --moe-aux-loss-coeff 0.01"
UTILITY = "--compete-kind utility --compete-router-balance-coeff 0 --compete-rate"


def lines(folder: Path, arguments: str) -> list[dict[str, Any]]:
    log = folder / "probe.jsonl"
    done = run_warm(main, *f"{SHORT} --probe-log {log} {arguments}".split(), cwd=folder)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in log.read_text().splitlines()]


def without_seconds(of_run: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if not key.endswith("_seconds")} for line in of_run]


def test_a_run_leaves_what_a_study_reads_and_repeats(tmp_path: Path) -> None:
    first = lines(tmp_path, f"{UTILITY} 0.5 --seed 3 --compete-seed 3")
    assert [line["step"] for line in first] == [0, 10, 20, 30]
    assert [line["tokens"] for line in first] == [0, 2560, 5120, 7680]
    assert set(first[0]) - set(first[1]) == {"weights"}
    assert len(first[-1]["load"][0]) == 16 and sum(first[-1]["load"][0]) == 512
    assert first[-1]["processor_seconds"] > first[1]["processor_seconds"] > 0
    assert first[-1]["loss"] < first[0]["loss"]
    again = lines(tmp_path, f"{UTILITY} 0.5 --seed 3 --compete-seed 3")
    assert without_seconds(again) == without_seconds(first)


def test_scoring_passes_are_counted_where_a_step_competes(tmp_path: Path) -> None:
    step, scoring = 3 * 256 * 1024, 256 * 16 * 1024
    plain, always, sampled = (
        lines(tmp_path, arguments)[-1]["flops"]
        for arguments in ("--router topk", f"{UTILITY} 1", f"{UTILITY} 1 --compete-token-fraction 0.25")
    )
    assert plain == 30 * step
    assert always == 30 * (step + scoring)
    assert sampled == 30 * (step + scoring / 4)


@pytest.mark.parametrize("arguments", ["", "--compete-rate 1", "--router default-moe", "--samples 512"])
def test_runs_of_a_seed_begin_alike_under_every_router(tmp_path: Path, arguments: str) -> None:
    plain, other = lines(tmp_path, "--router topk"), lines(tmp_path, arguments)
    assert other[0]["weights"] == plain[0]["weights"]
    assert other[-1]["loss"] != plain[-1]["loss"]


def test_the_oracle_learns_what_a_router_has_to_find(tmp_path: Path) -> None:
    longer = "--train-iters 200 --probe-interval 200"
    oracle, topk = (lines(tmp_path, f"{longer} --router {name}")[-1]["loss"] for name in ("oracle", "topk"))
    assert oracle < 0.3 < 0.6 < topk


def test_bad_input_is_one_line_of_the_log(tmp_path: Path) -> None:
    done = run_warm(main, "--initial", "nowhere.pt", "--moe-router-pre-softmax", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: --initial nowhere.pt cannot be read")


STUDY: dict[str, Any] = {
    "task": "regions", "steps": 20, "seeds": [1], "baseline": "topk", "probe": {"interval": 10, "sequences": 256},
    "arguments": {"moe-router-pre-softmax": True}, "starts": {"half": {"steps": 10, "arguments": {"router": "topk", "num-experts": 8}}},
    "variants": {
        "topk": {"arguments": {"router": "topk"}},
        "grown": {"start": "half", "arguments": {"router": "topk", "grow-experts": "copies", "grow-router": "random"}},
        "wrong": {"arguments": {"router": "oracle", "num-experts": 4}},
    },
}  # fmt: skip


@pytest.mark.parametrize("flags", [(), ("--cold", "--only", "topk")])
def test_a_study_trains_the_task_warm_and_cold(tmp_path: Path, flags: tuple[str, ...]) -> None:
    config, out = tmp_path / "study.yaml", tmp_path / "out"
    config.write_text(yaml.safe_dump(STUDY, sort_keys=False))
    command = [sys.executable, "-m", "megatron_compete", "study", "--config", str(config), "--out", str(out), *flags]
    done = subprocess.run([*command, "--no-report"], cwd=ROOT, env=os.environ, capture_output=True, text=True)
    finished = json.loads((out / "runs/topk/seed-1/finished.json").read_text())
    assert finished["steps"] == 20 and (out / "runs/topk/seed-1/probe.jsonl").is_file()
    if flags:
        assert done.returncode == 0 and "1 to train" in done.stdout
        return
    assert (out / "runs/grown/seed-1/finished.json").is_file()
    assert "wrong/seed-1" in done.stderr and "error: --regions 16 is out of range: --router oracle needs" in done.stderr
