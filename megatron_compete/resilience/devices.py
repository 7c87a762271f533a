"""What the ranks train on: CUDA on all of them, or the CPU on all of them.

The ranks agree on it before anything else. A node whose driver has failed would otherwise take the CPU stand-in by itself,
while the others wait for it in NCCL; it is a failed node. The CPU is for jobs in which no rank has a CUDA device and none
was asked for.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from megatron_compete.common.errors import CompeteError
from megatron_compete.launch import cpu_backend as cpu
from megatron_compete.launch.run_files import host_name, record_failure
from megatron_compete.resilience.agreement import PeerFailed, decide_on_rank_0, this_rank

NO_DEVICES = ("", "-1", "NoDevFiles")
"""Values of CUDA_VISIBLE_DEVICES that ask for none; the last one is Slurm's."""
PER_NODE = ("SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_NODE", "COMPETE_GPUS_PER_NODE")
PER_JOB = ("SLURM_GPUS", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_PER_TASK", "SLURM_GPUS_PER_SOCKET")


class NoDevice(Exception):
    """The CUDA device of this rank is not there."""


@dataclass(frozen=True)
class Found:
    """What one rank finds on its host."""

    rank: int
    host: str
    device: int
    """Number of its CUDA device, LOCAL_RANK."""
    visible: int
    """CUDA devices that it sees."""
    asked: int
    """How many of them the job was asked to have on a node, as far as its environment says."""
    without_cuda: bool
    """Whether its torch is built without CUDA."""
    reason: str
    """Why there is none."""

    @property
    def lacks(self) -> bool:
        """Whether its device is not there."""
        return self.visible <= self.device

    def describe(self) -> str:
        """One line on what is missing."""
        if self.visible == 0:
            return f"no CUDA device: {self.reason}"
        return f"CUDA device {self.device} is not there: {self.visible} are seen"


@dataclass(frozen=True)
class Verdict:
    """What becomes of the job."""

    on_cuda: bool = True
    failed: dict[int, Found] = field(default_factory=dict)
    """Ranks whose node has failed, by rank."""


def settle_device() -> None:
    """Agree with all ranks, and install the CPU stand-in if it is to be the CPU.

    Raises:
        CompeteError: on every rank; the job cannot run on these hosts.
        NoDevice: this rank's node has failed.
        PeerFailed: another one has; it is recorded.
    """
    verdict = decide_on_rank_0(look(), _judge_and_record)
    mine = verdict.failed.get(this_rank())
    if mine is not None:
        raise NoDevice(mine.describe())
    if verdict.failed:
        first = next(iter(verdict.failed.values()))
        raise PeerFailed(f"left because of rank {first.rank} on host {first.host}: {first.describe()}")
    if not verdict.on_cuda:
        cpu.activate()


def look(environment: Mapping[str, str] = os.environ) -> Found:
    """What this rank finds."""
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    built = torch.version.cuda is not None or torch.version.hip is not None
    return Found(
        this_rank(), host_name(), int(environment.get("LOCAL_RANK", "0")), visible, asked_gpus(environment), not built,
        "" if visible else _why_none(built),
    )  # fmt: skip


def asked_gpus(environment: Mapping[str, str]) -> int:
    """GPUs of a node that the job was asked to have: CUDA_VISIBLE_DEVICES counts before Slurm's variables; 0 for none.

    Where only the whole job's number is known, 1.
    """
    devices = environment.get("CUDA_VISIBLE_DEVICES")
    if devices is not None:
        return 0 if devices.strip() in NO_DEVICES else len(devices.split(","))
    counts = (environment.get(name, "").rpartition(":")[2] for name in PER_NODE)  # 8, gpu:8 or h100:8
    count = next((int(count) for count in counts if count.isdecimal() and int(count) > 0), 0)
    return count or int(any(environment.get(name, "0") not in ("", "0") for name in PER_JOB))


def judge(found: Sequence[Found]) -> Verdict:
    """Hosts that lack what others have, or what the job was asked to have, have failed.

    Raises:
        CompeteError: nothing has failed, and yet the job cannot run: more ranks than devices, a torch without CUDA.
    """
    lacking = {each.rank: each for each in found if each.lacks}
    if not lacking:
        return Verdict()
    if {each.host for each in found} - {each.host for each in lacking.values()}:
        return Verdict(failed=lacking)  # other hosts have all that they need
    if not any(each.visible for each in found):
        return _judge_without_any(lacking)
    failed = {rank: each for rank, each in lacking.items() if each.visible < max(each.asked, 1)}
    if failed:
        return Verdict(failed=failed)
    one = next(iter(lacking.values()))
    raise CompeteError(
        f"rank {one.rank} is to use CUDA device {one.device} of host {one.host}, which has {one.visible}: start no more "
        "ranks on a node (--nproc-per-node) than it has GPUs"
    )


def _judge_without_any(lacking: dict[int, Found]) -> Verdict:
    """No rank has a device."""
    one = next((each for each in lacking.values() if each.asked), None)
    if one is None:
        return Verdict(on_cuda=False)
    if all(each.without_cuda for each in lacking.values()):
        raise CompeteError(
            f"the job was asked to have GPUs ({one.asked} on host {one.host}), but {one.reason}: install one with CUDA, or "
            "train on CPU with CUDA_VISIBLE_DEVICES= (empty)"
        )
    return Verdict(failed=lacking)


def _judge_and_record(found: list[Found]) -> Verdict:
    """`judge`, and leave the failure records before anyone leaves: by one clock, and before what follows from them."""
    verdict = judge(found)
    for rank, each in verdict.failed.items():
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        record_failure(each.describe(), rank, rank % local_size, 1, host=each.host)
    return verdict


def _why_none(built: bool) -> str:
    if not built:
        return f"torch {torch.__version__} is built without CUDA"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return (str(error).splitlines() or [""])[0]
    return "torch.cuda.is_available() is false"
