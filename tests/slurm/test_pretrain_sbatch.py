"""The batch script's command line, with Slurm's variables and commands stood in for."""

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "slurm" / "pretrain.sbatch"


def submit(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    for name, body in {"scontrol": "printf 'node7\\nnode8\\n'", "srun": 'printf "srun|%s" "$*"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = dict(SLURM_JOB_NODELIST="node[7-8]", SLURM_JOB_NUM_NODES="2", SLURM_JOB_ID="41", REPO=str(tmp_path))
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], capture_output=True, text=True, timeout=60,
        env=os.environ | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | environment,
    )  # fmt: skip


def test_nodes_meet_at_the_first_one(tmp_path: Path) -> None:
    result = submit(tmp_path, "recipe.yaml", "--train-iters", "5")
    assert result.returncode == 0, result.stderr
    assert result.stdout == (
        f"srun|--kill-on-bad-exit=1 {tmp_path}/.venv/bin/megatron-compete pretrain --recipe recipe.yaml --nnodes 2 "
        "--rdzv-backend c10d --rdzv-id 41 --rdzv-endpoint node7:20041 --train-iters 5"
    )


def test_dry_run_only_prints(tmp_path: Path) -> None:
    result = submit(tmp_path, "recipe.yaml", DRY_RUN="1")
    assert result.stdout.startswith("srun --kill-on-bad-exit=1 ") and "|" not in result.stdout


def test_no_recipe_is_an_error(tmp_path: Path) -> None:
    result = submit(tmp_path)
    assert result.returncode == 2 and result.stderr.startswith("error: no recipe given")
