"""The command that the batch script composes; Slurm's variables and `scontrol` are stood in for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "slurm" / "pretrain.sbatch"
JOB = dict(
    SLURM_JOB_NODELIST="node[7-8]", SLURM_JOB_ID="41", SLURM_NTASKS_PER_NODE="4", COMPETE_TASKS_PER_NODE="4",
    COMPETE_VENV=sys.prefix, DRY_RUN="1",
)  # fmt: skip


def submit(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "scontrol").write_text("#!/bin/sh\nprintf 'node7\\nnode8\\n'\n")
    (tmp_path / "scontrol").chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "COMPETE_"))}
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], capture_output=True, text=True, timeout=60, cwd=tmp_path,
        env=clean | JOB | {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | environment,
    )  # fmt: skip


def command(tmp_path: Path, *arguments: str, **environment: str) -> str:
    result = submit(tmp_path, *arguments, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_agents_meet_at_the_first_node(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "41"
    assert command(tmp_path, "recipe.yaml", "--train-iters", "5") == (
        "srun --ntasks=2 --ntasks-per-node=1 --cpu-bind=none --kill-on-bad-exit=1 "
        f"{sys.prefix}/bin/python -m megatron_compete pretrain --recipe recipe.yaml "
        f"--save {run}/checkpoints --load {run}/checkpoints --tensorboard-dir {run}/tensorboard --exit-signal-handler "
        "--train-iters 5 --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-id 41-0 --rdzv-endpoint node7:20656"
    )
    assert not run.exists(), "a dry run writes nothing"


def test_a_run_folder_has_its_own_recipe_and_settings(tmp_path: Path) -> None:
    run = tmp_path / "a run"
    run.mkdir()
    (run / "recipe.yaml").touch()
    (run / "cluster.env").write_text("COMPETE_TASKS_PER_NODE=2\n")
    (run / "attempts.tsv").write_text("0\t40\t1\t2\tnode7\tfailed\t1\t-\tx\n")
    said = command(tmp_path, COMPETE_RUN=str(run))
    assert f"--recipe {tmp_path}/a\\ run/recipe.yaml --nnodes 2 --nproc-per-node 2" in said
    assert "--rdzv-id 41-1 --rdzv-endpoint node7:20657" in said, "each attempt has a port of its own"


@pytest.mark.parametrize(
    ("launcher", "begin"),
    [
        ("srun", "srun --ntasks=8 --ntasks-per-node=4 --kill-on-bad-exit=1 --cpus-per-task=12 --mpi=pmix "),
        ("mpirun", f"{sys.prefix}/bin/mpirun -n 8 bash {SCRIPT.parent}/mpi_rank.sh "),
    ],
)
def test_one_task_a_rank(tmp_path: Path, launcher: str, begin: str) -> None:
    said = command(tmp_path, "recipe.yaml", COMPETE_LAUNCHER=launcher, COMPETE_MPI="pmix", COMPETE_CPUS_PER_TASK="12")
    begin = begin if Path(sys.prefix, "bin", "mpirun").exists() else begin.replace(f"{sys.prefix}/bin/mpirun", "mpirun")
    assert said.startswith(begin + f"{sys.prefix}/bin/python -m megatron_compete pretrain ")
    assert said.endswith(f"--launcher {launcher}") and "rdzv" not in said


def test_pyxis(tmp_path: Path) -> None:
    (tmp_path / "cluster.env").write_text(
        "COMPETE_SOFTWARE=pyxis\nCOMPETE_IMAGE=/images/compete.sqsh\nCOMPETE_MOUNTS=/data:/data,/s\nNCCL_IB_HCA=mlx5\n"
    )
    said = command(tmp_path, "recipe.yaml", SLURM_SUBMIT_DIR=str(tmp_path))
    mounts = rf"/data:/data\,/s\,{tmp_path}/runs/41:{tmp_path}/runs/41\,{tmp_path}:{tmp_path}"
    assert f"--container-image=/images/compete.sqsh --container-mounts={mounts} --container-workdir={tmp_path}" in said
    assert r"--container-env=PYTHONPATH\,PYTHONSAFEPATH\,NCCL_IB_HCA python3 -m megatron_compete pretrain" in said


def test_apptainer(tmp_path: Path) -> None:
    said = command(
        tmp_path, "recipe.yaml", COMPETE_SOFTWARE="apptainer", COMPETE_IMAGE="compete.sif", COMPETE_LAUNCHER="mpirun"
    )
    assert "mpi_rank.sh apptainer exec --nv --bind" in said
    assert " compete.sif python3 -m megatron_compete pretrain" in said


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (dict(SLURM_JOB_ID=""), "SLURM_JOB_ID is not set"),
        (dict(COMPETE_TASKS_PER_NODE=""), "how many ranks a node has is not known"),
        (dict(COMPETE_VENV="/nowhere"), "COMPETE_VENV=/nowhere: no bin/python there"),
        (dict(COMPETE_SOFTWARE="docker"), "COMPETE_SOFTWARE=docker: choose one of venv, pyxis, apptainer"),
        (dict(COMPETE_SOFTWARE="pyxis"), "COMPETE_SOFTWARE=pyxis needs COMPETE_IMAGE"),
        (dict(COMPETE_SOFTWARE="pyxis", COMPETE_IMAGE="a", COMPETE_LAUNCHER="mpirun"), "COMPETE_LAUNCHER=mpirun cannot start pyxis"),
        (dict(COMPETE_LAUNCHER="ssh"), "COMPETE_LAUNCHER=ssh: choose one of torchrun, srun, mpirun"),
        (dict(COMPETE_LAUNCHER="srun", SLURM_NTASKS_PER_NODE="1"), "submit with --ntasks-per-node=4"),
    ],
)  # fmt: skip
def test_what_the_user_can_fix_is_one_line(tmp_path: Path, environment: dict[str, str], message: str) -> None:
    result = submit(tmp_path, "recipe.yaml", **environment)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and message in result.stderr and result.stderr.count("\n") == 1


def test_no_recipe_is_an_error(tmp_path: Path) -> None:
    result = submit(tmp_path)
    assert result.returncode == 2 and result.stderr.startswith("error: no recipe given")
