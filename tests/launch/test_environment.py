"""Ranks from environments that launchers really set (`environments/`, captured on two and three nodes), and from broken ones."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.launch.environment import Launch, enter_launch, launch_from

ENVIRONMENTS = Path(__file__).parent / "environments"


def captured(name: str, **changes: str | None) -> dict[str, str]:
    """A captured environment; a change to None removes the variable."""
    lines = (ENVIRONMENTS / f"{name}.env").read_text().splitlines()
    environment = dict(line.split("=", 1) for line in lines) | changes
    return {key: value for key, value in environment.items() if value is not None}


TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "7", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "n1", "MASTER_PORT": "40000",
}  # fmt: skip

CAPTURED = {
    "srun.1": Launch("srun", 1, 4, 1, 2, "n1", 20128),
    "srun.2": Launch("srun", 2, 4, 0, 2, "n1", 20128),
    "srun-pmi2.3": Launch("srun", 3, 4, 1, 2, "n1", 20129),
    "srun-pmix.3": Launch("srun", 3, 4, 1, 2, "n1", 20130),
    "srun-uneven.4": Launch("srun", 4, 5, 0, 1, "n1", 20144),
    "mpich.1": Launch("MPICH", 1, 2, 1, 2, "127.0.0.1", 29500),
    "mpich-in-slurm.0": Launch("MPICH", 0, 4, 0, 2, "n1", 20128),
    "mpich-in-slurm.3": Launch("MPICH", 3, 4, 1, 2, "n1", 20128),
    "openmpi.1": Launch("Open MPI", 1, 2, 1, 2, "127.0.0.1", 23717),
    "openmpi-in-slurm.0": Launch("Open MPI", 0, 4, 0, 2, "n1", 20128),
    "openmpi-in-slurm.3": Launch("Open MPI", 3, 4, 1, 2, "n1", 20128),
}
"""In Slurm the ports follow from job 8 and, under srun, the step."""


@pytest.mark.parametrize(("name", "expected"), CAPTURED.items(), ids=CAPTURED)
def test_captured(name: str, expected: Launch) -> None:
    assert launch_from(captured(name)) == expected


def test_torchrun_wins_over_the_srun_that_started_it() -> None:
    assert launch_from(captured("srun.2") | TORCHRUN) == Launch("torchrun", 5, 8, 1, 4, "n1", 40000)


def test_a_single_process_is_a_world_of_one() -> None:
    environment: dict[str, str] = {"HOME": "/root"}
    assert enter_launch(None, environment) == Launch("nobody", 0, 1, 0, 1, "127.0.0.1", 0)
    assert environment["WORLD_SIZE"] == "1" and environment["RANK"] == "0"
    assert launch_from(captured("slurm-batch", SLURM_NTASKS="1")).world_size == 1


def test_a_shell_that_srun_started_runs_single_ranks_beside_each_other() -> None:
    """`srun -n 1 --pty bash`: every process in it is rank 0 of one, and no two may want the same port."""
    shell = captured("srun.1", SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_NTASKS="1", SLURM_STEP_NUM_TASKS="1", SLURM_STEP_TASKS_PER_NODE="1")  # fmt: skip
    assert launch_from(shell) == Launch("srun", 0, 1, 0, 1, "127.0.0.1", 0)
    assert enter_launch("srun", dict(shell)).world_size == 1


def test_what_is_given_wins() -> None:
    given = captured("srun.1", MASTER_ADDR="10.0.0.7", MASTER_PORT="1234")
    assert launch_from(given) == Launch("srun", 1, 4, 1, 2, "10.0.0.7", 1234)
    by_hand = {key: value for key, value in TORCHRUN.items() if key != "TORCHELASTIC_RUN_ID"}
    assert launch_from(by_hand).launcher == "by hand"
    same = captured("srun.1", RANK="1", WORLD_SIZE="4", LOCAL_RANK="1")
    assert launch_from(same).launcher == "srun"


def test_a_rank_that_sees_its_own_gpu_only() -> None:
    assert launch_from(captured("srun.1", CUDA_VISIBLE_DEVICES="3")).local_rank == 0
    assert launch_from(captured("srun.1", CUDA_VISIBLE_DEVICES="0,1")).local_rank == 1
    assert launch_from(captured("openmpi-in-slurm.3", CUDA_VISIBLE_DEVICES="1")).local_rank == 0
    assert launch_from(TORCHRUN | {"CUDA_VISIBLE_DEVICES": "1"}).local_rank == 1


BROKEN = {
    "rank is not below size": (captured("srun.1", SLURM_PROCID="4"), r"SLURM_PROCID=4 must be below SLURM_STEP_NUM_TASKS=4"),
    "local rank is not below its size": (captured("mpich.1", MPI_LOCALRANKID="2"), r"MPI_LOCALRANKID=2 must be below MPI_LOCALNRANKS=2"),
    "no number": (captured("openmpi.1", OMPI_COMM_WORLD_SIZE="two"), r"OMPI_COMM_WORLD_SIZE=two is no number from 0: Open MPI sets"),
    "negative": (captured("srun.1", SLURM_LOCALID="-1"), r"SLURM_LOCALID=-1 is no number"),
    "missing": (captured("mpich.1", PMI_SIZE=None), r"PMI_SIZE is not set, but PMI_RANK is: MPICH sets"),
    "allocation, not a step": (captured("slurm-batch"), r"SLURM_NTASKS=4 is what this job was given.*start the ranks with srun"),
    "interactive step": (captured("srun.1", SLURM_STEP_NUM_TASKS="1"), r"SLURM_NTASKS=4 is what this job was given, but this step has SLURM_STEP_NUM_TASKS=1"),
    "contradiction": (captured("srun.1", RANK="0", WORLD_SIZE="1"), r"SLURM_PROCID=1 of srun and RANK=0 of by hand contradict"),
    "two mpiruns": (captured("mpich.1") | captured("openmpi.1", OMPI_COMM_WORLD_SIZE="8"), r"OMPI_COMM_WORLD_SIZE=8 of Open MPI and PMI_SIZE=2 of MPICH"),
    "several nodes, no address": (captured("openmpi.1", OMPI_COMM_WORLD_SIZE="4"), r"MASTER_ADDR is not set, and 2 of 4 ranks are on other hosts.*-x MASTER_ADDR=HOST"),
    "torchrun's variables without address": ({key: value for key, value in TORCHRUN.items() if key != "MASTER_ADDR"}, r"MASTER_ADDR is not set, but WORLD_SIZE=8"),
    "half by hand": ({"RANK": "0"}, r"WORLD_SIZE is not set, but RANK is: set RANK, WORLD_SIZE"),
    "half by hand, the other half": ({"WORLD_SIZE": "2"}, r"RANK is not set"),
    "PMIx alone": ({"PMIX_RANK": "1"}, r"PMIX_RANK=1 is set, but no variable that says how many ranks"),
    "too few GPUs": (captured("srun-uneven.4", SLURM_LOCALID="2", SLURM_STEP_TASKS_PER_NODE="3(x3)", CUDA_VISIBLE_DEVICES="0,1"), r"CUDA_VISIBLE_DEVICES=0,1 names 2 GPUs for 3 ranks"),
    "port": (captured("srun.1", MASTER_PORT="70000"), r"MASTER_PORT=70000 is no port"),
    "nodes": (captured("srun.1", SLURM_STEP_NODELIST="n[1-"), r"'n\[1-' is no list of nodes"),
}  # fmt: skip


@pytest.mark.parametrize(("environment", "message"), BROKEN.values(), ids=BROKEN)
def test_broken(environment: dict[str, str], message: str) -> None:
    with pytest.raises(CompeteError, match=message) as raised:
        launch_from(environment)
    assert "\n" not in str(raised.value)


def test_another_launcher_than_asked_for() -> None:
    with pytest.raises(
        CompeteError, match=r"--launcher srun, but this process was started by nobody: start it with `srun"
    ):
        enter_launch("srun", {})
    with pytest.raises(CompeteError, match="--launcher mpirun, but this process was started by srun"):
        enter_launch("mpirun", captured("srun.1"))


def test_rank_0_is_not_where_the_others_look() -> None:
    elsewhere = captured("mpich.1", PMI_RANK="0", MPI_LOCALRANKID="0", MASTER_ADDR="192.0.2.7")
    with pytest.raises(CompeteError, match=r"MASTER_ADDR=192\.0\.2\.7 is not this host"):
        enter_launch("mpirun", elsewhere)


def test_under_a_real_mpiexec() -> None:
    """MPICH's from PyPI is what this project's tools run under where a machine has no MPI."""
    mpiexec = Path(sys.executable).with_name("mpiexec")
    if not mpiexec.exists() and shutil.which("mpiexec") is None:
        pytest.skip("no mpiexec here")
    program = (
        "import dataclasses, json; from megatron_compete.launch.environment import enter_launch; "
        "print(json.dumps(dataclasses.asdict(enter_launch('mpirun'))) + '\\n', end='', flush=True)"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RANK", "WORLD_", "MASTER_"))}
    command = [str(mpiexec) if mpiexec.exists() else "mpiexec", "-n", "3", sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=clean)
    assert result.returncode == 0, result.stderr
    ranks = sorted((json.loads(line) for line in result.stdout.splitlines()), key=lambda rank: rank["rank"])
    assert [(rank["rank"], rank["world_size"], rank["local_rank"]) for rank in ranks] == [
        (0, 3, 0),
        (1, 3, 1),
        (2, 3, 2),
    ]
    assert len({(rank["master_addr"], rank["master_port"]) for rank in ranks}) == 1
