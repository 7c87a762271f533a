"""Which rank this process is, from whatever started it: torchrun, srun, Open MPI, MPICH and its relatives, or nobody.

`launch_from` is a function of the environment alone. What is missing or contradictory is an error here: a wrong world
size or address would let all ranks wait for each other until a timeout.

What launchers set (seen with Slurm 22.05, Open MPI 5.0, MPICH 5.0; `tests/launch/environments` has them whole):

    torchrun    RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT; TORCHELASTIC_RUN_ID marks it
    srun        SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID, SLURM_STEP_NODELIST. A batch script has SLURM_PROCID
                and SLURM_NTASKS too, the latter of the allocation, but no SLURM_STEP_ID
    Open MPI    OMPI_COMM_WORLD_{RANK,SIZE,LOCAL_RANK,LOCAL_SIZE}, and SLURM_* of its own daemons
    MPICH       PMI_RANK, PMI_SIZE, MPI_LOCALRANKID, MPI_LOCALNRANKS, and SLURM_* of its own daemons
"""

import os
import socket
import zlib
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Literal

from megatron_compete.common.errors import CompeteError
from megatron_compete.launch.nodelist import expand_counts, expand_nodelist

Environment = Mapping[str, str]

FIRST_PORT, PORTS = 20000, 12000
"""Ports that are derived from a job's number: below those that Linux hands out by itself (from 32768)."""
DEFAULT_PORT = 29500
"""torch's own, where nothing that all ranks know tells one job from another."""
Launcher = Literal["torchrun", "srun", "mpirun"]
"""What --launcher and COMPETE_LAUNCHER may be."""
LAUNCHERS: Mapping[str, tuple[str, ...]] = {
    "torchrun": ("torchrun",),
    "srun": ("srun",),
    "mpirun": ("Open MPI", "MPICH"),
}
"""Values of --launcher, and the launchers found in the environment that they mean."""


@dataclass(frozen=True)
class Names:
    """Where a launcher puts what."""

    launcher: str
    rank: str
    size: str
    local_rank: str
    local_size: str


OPEN_MPI = Names(
    "Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"
)  # fmt: skip
MPICH = Names("MPICH", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
CRAY = Names("MPICH", "PMI_RANK", "PMI_SIZE", "PMI_LOCAL_RANK", "PMI_LOCAL_SIZE")
SRUN = Names("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
BY_HAND = Names("by hand", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
TORCHRUN = Names("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
ALONE = Names("nobody", "", "", "", "")


@dataclass(frozen=True)
class Launch:
    """One rank of a job, as torch.distributed's `env://` wants it."""

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_addr: str
    master_port: int

    def variables(self) -> dict[str, str]:
        """The environment of this rank."""
        return {
            "RANK": str(self.rank), "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank), "LOCAL_WORLD_SIZE": str(self.local_world_size),
            "MASTER_ADDR": self.master_addr, "MASTER_PORT": str(self.master_port),
        }  # fmt: skip


def enter_launch(launcher: str | None = None, environment: MutableMapping[str, str] = os.environ) -> Launch:
    """Find out which rank this process is, and set RANK, WORLD_SIZE, ... accordingly.

    Args:
        launcher: what must have started it (`LAUNCHERS`), or None for whatever did.
    Raises:
        CompeteError: the environment does not say, or contradicts itself, or rank 0 is not where the others look.
    """
    launch = launch_from(environment)
    if launcher is not None and launch.launcher not in LAUNCHERS[launcher]:
        raise CompeteError(
            f"--launcher {launcher}, but this process was started by {launch.launcher}: start it with "
            f"`{launcher} -n RANKS megatron-compete pretrain ...`, or leave --launcher out for torchrun"
        )
    if launch.rank == 0 and launch.launcher in LAUNCHERS["mpirun"]:
        _check_address_is_here(launch.master_addr)
    environment.update(launch.variables())
    return launch


def launch_from(environment: Environment) -> Launch:
    """This process's place in its job.

    Raises:
        CompeteError: names the variable, its value and the way out.
    """
    names = _names(environment)
    if names is ALONE:
        return Launch("nobody", 0, 1, 0, 1, "127.0.0.1", 0)
    rank, size = _number(environment, names.rank, names), _number(environment, names.size, names)
    _check_below(names.rank, rank, names.size, size)
    local_rank = _number(environment, names.local_rank, names)
    local_size = _local_size(environment, names, size)
    _check_below(names.local_rank, local_rank, names.local_size, local_size)
    return Launch(
        names.launcher, rank, size, _device(environment, names, local_rank, local_size), local_size,
        _master_addr(environment, names, size, local_size), _master_port(environment, names, size),
    )  # fmt: skip


def _names(environment: Environment) -> Names:
    """Whose variables count, from the innermost launcher outwards."""
    if "TORCHELASTIC_RUN_ID" in environment:
        return TORCHRUN
    found = [names for names in (OPEN_MPI, MPICH, CRAY) if {names.rank, names.local_rank} <= environment.keys()]
    if not found and "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment:
        _check_step(environment)
        found = [SRUN]
    if "RANK" in environment or "WORLD_SIZE" in environment:
        found.append(BY_HAND)
    for other in found[1:]:
        _check_same(environment, found[0], other)
    return found[0] if found else _alone(environment)


def _alone(environment: Environment) -> Names:
    if "PMI_RANK" in environment or "PMIX_RANK" in environment:
        name = "PMI_RANK" if "PMI_RANK" in environment else "PMIX_RANK"
        raise CompeteError(
            f"{name}={environment[name]} is set, but no variable that says how many ranks a node has (Open MPI sets "
            "OMPI_COMM_WORLD_*, MPICH MPI_LOCALRANKID): start with their mpirun or with srun, or set RANK, WORLD_SIZE, "
            "LOCAL_RANK, MASTER_ADDR and MASTER_PORT"
        )
    if _allocated(environment) > 1:
        raise CompeteError(
            f"SLURM_NTASKS={environment['SLURM_NTASKS']} is what this job was given, but srun did not start this "
            "process (SLURM_STEP_ID is not set): start the ranks with srun, or unset SLURM_NTASKS for a single one"
        )
    return ALONE


def _allocated(environment: Environment) -> int:
    value = environment.get("SLURM_NTASKS", "1")
    return int(value) if value.isdecimal() else 1


def _check_step(environment: Environment) -> None:
    """An interactive shell is a step of one task in an allocation of more."""
    tasks, step_tasks = environment.get("SLURM_NTASKS"), environment.get("SLURM_STEP_NUM_TASKS")
    if tasks is not None and step_tasks is not None and tasks != step_tasks:
        raise CompeteError(
            f"SLURM_NTASKS={tasks} is what this job was given, but this step has SLURM_STEP_NUM_TASKS={step_tasks}: "
            "start the ranks with srun, or unset SLURM_NTASKS for a single one"
        )


def _check_same(environment: Environment, one: Names, other: Names) -> None:
    for first, second in ((one.rank, other.rank), (one.size, other.size)):
        if environment.get(first) != environment.get(second):
            raise CompeteError(
                f"{first}={environment.get(first)} of {one.launcher} and {second}={environment.get(second)} of "
                f"{other.launcher} contradict each other: unset those of the launcher that did not start this process"
            )


def _number(environment: Environment, name: str, names: Names) -> int:
    value = environment.get(name)
    if value is None:
        raise CompeteError(f"{name} is not set, but {names.rank} is: {_way_out(names)}")
    if not value.isascii() or not value.isdecimal():
        raise CompeteError(f"{name}={value} is no number from 0: {_way_out(names)}")
    return int(value)


def _way_out(names: Names) -> str:
    if names is BY_HAND:
        return "set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, or unset them all"
    return f"{names.launcher} sets {names.rank}, {names.size} and {names.local_rank}; start the ranks with it"


def _check_below(name: str, value: int, limit_name: str, limit: int) -> None:
    if value >= limit:
        raise CompeteError(f"{name}={value} must be below {limit_name}={limit}: ranks count from 0")


def _local_size(environment: Environment, names: Names, size: int) -> int:
    """Ranks on this node."""
    if names is SRUN:
        counts = expand_counts(environment.get(names.local_size, str(size)))
        node = _number(environment, "SLURM_NODEID", names) if len(counts) > 1 else 0
        _check_below("SLURM_NODEID", node, "nodes in SLURM_STEP_TASKS_PER_NODE", len(counts))
        return counts[node]
    if names in (TORCHRUN, BY_HAND) and names.local_size not in environment:
        return size
    return _number(environment, names.local_size, names)


def _device(environment: Environment, names: Names, local_rank: int, local_size: int) -> int:
    """LOCAL_RANK, which picks the GPU: 0 where the launcher shows each rank only its own."""
    visible = [device for device in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
    if names in (TORCHRUN, BY_HAND) or not visible or local_rank < len(visible):
        return local_rank
    if len(visible) == 1:
        return 0
    raise CompeteError(
        f"CUDA_VISIBLE_DEVICES={environment['CUDA_VISIBLE_DEVICES']} names {len(visible)} GPUs for {local_size} ranks "
        "on this node: give a rank one each (--gpus-per-task 1), or all ranks all of them"
    )


def _master_addr(environment: Environment, names: Names, size: int, local_size: int) -> str:
    """Where rank 0 is: as given, this host where all ranks are on it, else Slurm's first node."""
    given = environment.get("MASTER_ADDR")
    if given:
        return given
    if size == 1 and names is not TORCHRUN:
        return "127.0.0.1"
    nodes = environment.get("SLURM_JOB_NODELIST")  # the step's are, under mpirun, those of its own daemons
    if names is SRUN:
        nodes = environment.get("SLURM_STEP_NODELIST") or nodes
        if nodes:
            return expand_nodelist(nodes)[0]
    if names in (TORCHRUN, BY_HAND) and size > 1:
        raise CompeteError(f"MASTER_ADDR is not set, but {names.size}={size}: set it to the host of rank 0")
    if local_size == size:
        return "127.0.0.1"
    if nodes:
        return expand_nodelist(nodes)[0]
    raise CompeteError(
        f"MASTER_ADDR is not set, and {size - local_size} of {size} ranks are on other hosts: hand on the host of rank "
        "0, with `mpirun -x MASTER_ADDR=HOST` (Open MPI) or `mpiexec -genv MASTER_ADDR HOST` (MPICH)"
    )


def _master_port(environment: Environment, names: Names, size: int) -> int:
    """As given (0, any, will do for a single rank), else from what all ranks of this job have in common and other jobs have not."""
    if "MASTER_PORT" in environment:
        port = _number(environment, "MASTER_PORT", names)
        if port > 65535 or (port == 0 and size > 1):
            raise CompeteError(f"MASTER_PORT={port} is no port: give one from 1024 to 65535, or unset it")
        return port
    if size == 1:
        return 0  # any: a shell that srun started may run several such jobs at a time
    step = environment.get("SLURM_STEP_ID", "0") if names is SRUN else "0"
    for name in ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID"):
        number = environment.get(name, "").split(".")[0]
        if number.isdecimal() and step.isdecimal():
            return FIRST_PORT + (int(number) * 16 + int(step)) % PORTS
    if names is OPEN_MPI and "PMIX_NAMESPACE" in environment:
        return FIRST_PORT + zlib.crc32(environment["PMIX_NAMESPACE"].encode()) % PORTS
    return DEFAULT_PORT


def _check_address_is_here(address: str) -> None:
    """mpirun may put rank 0 on another node than the allocation's first: the others would look for it in vain."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(place)
    except OSError as error:
        raise CompeteError(
            f"MASTER_ADDR={address} is not this host ({socket.gethostname()}), where rank 0 is ({error.strerror}): "
            "set MASTER_ADDR to the host of rank 0"
        ) from error
