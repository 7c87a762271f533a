"""`megatron-compete pretrain` under each launcher, with the real trainer."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from megatron_compete.launch.recipe import parse_overrides
from tests.training.runs import MODEL

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PRETRAIN = [sys.executable, "-m", "megatron_compete", "pretrain"]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    content = {"launch": {"nproc-per-node": 2}, "arguments": parse_overrides(MODEL.split())}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def environment(run: Path) -> dict[str, str]:
    launchers = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "SLURM_", "PMI", "OMPI_")
    kept = ("SLURM_CONF",)
    clean = {name: value for name, value in os.environ.items() if name in kept or not name.startswith(launchers)}
    return clean | {"COMPETE_RUN": str(run), "COMPETE_ATTEMPT": "0", "PYTHONPATH": str(ROOT)}


def run(*command: str | Path, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=ROOT, env=environment(folder) | more, timeout=400
    )


def test_mpirun(recipe: Path, tmp_path: Path) -> None:
    mpiexec = Path(sys.executable).with_name("mpiexec")
    if not mpiexec.exists():
        pytest.skip("no mpiexec in this environment")
    flags = ("--recipe", recipe, "--launcher", "mpirun", "--train-iters", "2", "--pipeline-model-parallel-size", "2")
    result = run(mpiexec, "-n", "2", *PRETRAIN, *flags, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "outcomes/0").read_text() == "finished\n"
    assert "world size: 2" in result.stdout and "iteration        2/       2" in result.stdout


def test_torchrun_is_told_to_stop(recipe: Path, tmp_path: Path) -> None:
    """The signal goes to the launcher alone, as from a batch script."""
    flags = [
        "--recipe", str(recipe), "--train-iters", "10000", "--exit-signal-handler",
        "--save", f"{tmp_path}/ckpt", "--save-interval", "10000",
    ]  # fmt: skip
    with open(tmp_path / "log", "w+") as log:
        process = subprocess.Popen(
            [*PRETRAIN, *flags], stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT, env=environment(tmp_path)
        )
        assert process.stdout is not None
        seen = ""
        while "iteration        2/" not in seen:
            line = process.stdout.readline()
            assert line, f"{seen}\n{Path(log.name).read_text()}"
            seen += line
        process.send_signal(signal.SIGTERM)
        seen += process.communicate(timeout=400)[0]
    assert process.returncode == 75, seen
    saved = (tmp_path / "ckpt/latest_checkpointed_iteration.txt").read_text()
    assert (tmp_path / "outcomes/0").read_text() == f"stopped\nafter iteration {saved}\n"
    assert not (tmp_path / "failures").exists()


def test_dry_run(recipe: Path, tmp_path: Path) -> None:
    flags = ("--recipe", recipe, "--launcher", "srun", "--train-iters", "7")
    result = run(*PRETRAIN, *flags, folder=tmp_path, DRY_RUN="1")
    assert result.returncode == 0
    assert result.stdout.startswith("srun python -m megatron_compete.training.pretrain --num-layers 4 ")
    assert result.stdout.endswith(" --train-iters 7\n") and "nproc" not in result.stdout


def test_a_launcher_that_is_not_there(recipe: Path, tmp_path: Path) -> None:
    result = run(*PRETRAIN, "--recipe", recipe, "--launcher", "srun", folder=tmp_path)
    assert result.returncode == 2
    errors = [line for line in result.stderr.splitlines() if "rror" in line]
    assert len(errors) == 1
    assert errors[0].startswith("error: --launcher srun, but this process was started by nobody: start it with `srun")
    assert (tmp_path / "outcomes/0").read_text().startswith("refused\n--launcher srun")


def test_srun(recipe: Path, tmp_path: Path) -> None:
    if shutil.which("srun") is None or subprocess.run(["srun", "-n2", "true"], capture_output=True).returncode != 0:
        pytest.skip("no Slurm that runs two tasks here")
    flags = ("--recipe", recipe, "--launcher", "srun", "--train-iters", "2", "--expert-model-parallel-size", "2")
    result = run("srun", "-n2", "--kill-on-bad-exit=1", *PRETRAIN, *flags, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "outcomes/0").read_text() == "finished\n"
