"""The command on `examples/studies/smoke.yaml`, killed in the middle."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_compete.cli import main
from megatron_compete.study.folder import RunFolder
from tests.warm import run_warm

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ROOT / "examples" / "studies" / "smoke.yaml"
RUNS = ("topk/seed-1", "paper/seed-1")


def command(config: Path, out: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "megatron_compete", "study", "--config", str(config), "--out", str(out), *flags]


def study(*arguments: Any, timeout: float = 500.0, **environment: str) -> str:
    """Run the command to its end; what it printed."""
    done = subprocess.run(command(*arguments), cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=timeout)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def without_training(config: Path, out: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The same of a command that trains nothing."""
    flags = ("--config", str(config), "--out", str(out), *flags)
    return run_warm(main, "study", *flags, cwd=ROOT, environment=os.environ | environment)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke study with one seed, long enough to be killed after its first checkpoint."""
    path = tmp_path_factory.mktemp("config") / "smoke.yaml"
    content = yaml.safe_load(SMOKE.read_text()) | {"steps": 60, "seeds": [1], "probe": {"interval": 10, "sequences": 8}}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def uninterrupted(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    assert "2 runs, 0 finished, 2 to train" in study(config, out)
    return out


def lines(out: Path, run: str) -> list[dict[str, Any]]:
    log = out / "runs" / run / "probe.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()]


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def is_free(folder: RunFolder) -> bool:
    lock = folder.lock()
    if lock is not None:
        os.close(lock)
    return lock is not None


def test_the_smoke_study_leaves_a_whole_folder(uninterrupted: Path, config: Path) -> None:
    for run in RUNS:
        assert [line["step"] for line in lines(uninterrupted, run)] == list(range(0, 61, 10))
        assert not (uninterrupted / "runs" / run / "work/checkpoints").exists()
    one, other = (lines(uninterrupted, run) for run in RUNS)
    assert one[0]["weights"] == other[0]["weights"] and one[0]["loss"] == other[0]["loss"]
    assert one[-1]["loss"] < one[0]["loss"] - 1 and one[-1]["loss"] != other[-1]["loss"]
    assert one[-1]["tokens"] == 60 * 4 * 64
    assert 0 < one[1]["processor_seconds"] < one[-1]["processor_seconds"]
    assert (uninterrupted / "report.html").is_file()
    shown = without_training(config, uninterrupted, DRY_RUN="1")
    assert shown.returncode == 0 and "finished" in shown.stdout


@pytest.mark.slow
def test_killed_and_resumed_it_is_the_uninterrupted_study(uninterrupted: Path, config: Path, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted / "corpus", tmp_path / "corpus")
    first = RunFolder(tmp_path / "runs" / RUNS[0])
    process = subprocess.Popen(command(config, tmp_path, "--jobs", "1"), cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        wait_until((first.work / "checkpoints/latest_checkpointed_iteration.txt").exists, 300)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert first.finished() is None
    wait_until(lambda: is_free(first), 30)  # the rank ends with the study

    said = study(config, tmp_path)
    assert f"{RUNS[0]}: 60 steps (goes on)" in said
    for run in RUNS:
        ours, theirs = lines(tmp_path, run), lines(uninterrupted, run)
        for line in (*ours, *theirs):
            del line["processor_seconds"], line["wall_seconds"]
        assert ours == theirs
    assert "2 runs, 2 finished, 0 to train" in without_training(config, tmp_path, "--no-report").stdout


@pytest.mark.slow
def test_a_run_started_as_a_command_is_the_same(uninterrupted: Path, config: Path, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted / "corpus", tmp_path / "corpus")
    study(config, tmp_path, "--cold", "--only", RUNS[0], "--no-report")
    ours, theirs = lines(tmp_path, RUNS[0]), lines(uninterrupted, RUNS[0])
    assert [(line["loss"], line["choices"]) for line in ours] == [(line["loss"], line["choices"]) for line in theirs]


def test_the_report_is_made_of_the_raw_logs_alone(uninterrupted: Path, config: Path, tmp_path: Path) -> None:
    for run in RUNS:
        (tmp_path / "runs" / run).mkdir(parents=True)
        for name in ("finished.json", "probe.jsonl", "scalars.csv"):
            shutil.copy(uninterrupted / "runs" / run / name, tmp_path / "runs" / run / name)
    (tmp_path / "timing").mkdir()
    for timing in (uninterrupted / "timing").glob("*.json"):
        shutil.copy(timing, tmp_path / "timing")
    assert without_training(config, tmp_path, "--report-only").returncode == 0
    for name in ("table.csv", "curves.csv", "report.html"):
        assert (tmp_path / name).read_bytes() == (uninterrupted / name).read_bytes()


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("steps: 0\nseeds: [1]\n")
    done = without_training(tmp_path / "bad.yaml", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --config") and len(done.stderr.splitlines()) == 1
