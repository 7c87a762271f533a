"""What the ranks train on is one thing for all; a node without what it should have has failed."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_compete.common.errors import CompeteError
from megatron_compete.launch import cpu_backend as cpu
from megatron_compete.resilience import devices
from megatron_compete.resilience.devices import Found, asked_gpus, judge
from tests.failures import first_failure, from_batch_script, read_failures
from tests.ranks import run_ranks

BROKEN = "CUDA unknown error"


def hosts(*visible: int, asked: int = 0, ranks: int = 2, without_cuda: bool = False) -> list[Found]:
    """Ranks on hosts n1, n2, ... that see so many devices."""
    return [
        Found(host * ranks + local, f"n{host + 1}", local, count, asked, without_cuda, BROKEN)
        for host, count in enumerate(visible) for local in range(ranks)
    ]  # fmt: skip


def test_all_or_none() -> None:
    assert judge(hosts(2, 8)).on_cuda and not judge(hosts(2, 8)).failed
    assert not judge(hosts(0, 0)).on_cuda and not judge(hosts(0, 0)).failed
    assert not judge(hosts(0, 0, without_cuda=True)).on_cuda


@pytest.mark.parametrize("asked", [0, 2])
@pytest.mark.parametrize("without_cuda", [False, True])
def test_a_host_without_devices_among_others_has_failed(asked: int, without_cuda: bool) -> None:
    failed = judge(hosts(2, 0, 2, asked=asked, without_cuda=without_cuda)).failed
    assert list(failed) == [2, 3] and {each.host for each in failed.values()} == {"n2"}
    assert failed[2].describe() == f"no CUDA device: {BROKEN}"


def test_a_host_with_too_few_devices_has_failed() -> None:
    assert list(judge(hosts(2, 1)).failed) == [3], "the other host has enough"
    assert list(judge(hosts(1, asked=2)).failed) == [1], "it was asked to have two"
    assert judge(hosts(1, asked=2)).failed[1].describe() == "CUDA device 1 is not there: 1 are seen"
    assert list(judge(hosts(1, 0)).failed) == [2, 3], "none is whole, but one has nothing at all"


def test_devices_that_were_asked_for_and_are_nowhere() -> None:
    assert list(judge(hosts(0, 0, asked=2)).failed) == [0, 1, 2, 3]


def test_what_has_not_failed_and_cannot_run_is_refused() -> None:
    with pytest.raises(CompeteError, match=r"rank 1 is to use CUDA device 1 of host n1, which has 1: .*nproc-per-node"):
        judge(hosts(1, 1))
    with pytest.raises(CompeteError, match=r"asked to have GPUs .2 on host n1.*CUDA_VISIBLE_DEVICES= "):
        judge(hosts(0, asked=2, without_cuda=True))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 0),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2"}, 3),
        ({"CUDA_VISIBLE_DEVICES": "", "SLURM_GPUS_ON_NODE": "8"}, 0),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 0),
        ({"CUDA_VISIBLE_DEVICES": "-1", "COMPETE_GPUS_PER_NODE": "8"}, 0),
        ({"SLURM_GPUS_PER_NODE": "h100:8"}, 8),
        ({"SLURM_GPUS_ON_NODE": "4"}, 4),
        ({"COMPETE_GPUS_PER_NODE": "8"}, 8),
        ({"COMPETE_GPUS_PER_NODE": "0"}, 0),
        ({"SLURM_GPUS": "16"}, 1),
        ({"SLURM_GPUS_PER_TASK": "gpu:1"}, 1),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, 0),
    ],
)
def test_what_was_asked_for(environment: dict[str, str], expected: int) -> None:
    assert asked_gpus(environment) == expected


def start(run: str, with_devices: list[int]) -> Any:
    """The trainer's start on nodes of one rank, of which some see a CUDA device; how this rank leaves."""
    from megatron_compete.resilience.stopping import leave
    from megatron_compete.training import pretrain

    rank = int(os.environ["RANK"])
    leave.PEER_SECONDS = 0.0
    os.environ.update(
        COMPETE_RUN=run, COMPETE_ATTEMPT="0", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", SLURMD_NODENAME=f"n{rank + 1}"
    )
    cpu.deactivate()
    if rank in with_devices:
        torch.cuda.is_available = lambda: True
        torch.cuda.device_count = lambda: 1
    devices._why_none = lambda built: BROKEN
    pretrain.parse_arguments = _agreed
    try:
        pretrain.main()
    except SystemExit as error:
        return error.code, cpu.is_active()
    raise AssertionError("it went on")


def _agreed() -> None:
    raise SystemExit(7)  # what comes next does not matter here


def test_the_node_without_devices_is_the_one_that_failed(tmp_path: Path) -> None:
    """Nobody waits for NCCL, nothing is refused, and the batch script counts and names that node."""
    assert run_ranks(3, start, str(tmp_path), [0, 2], timeout=60) == [(1, False)] * 3
    assert not (tmp_path / "outcomes").exists()
    assert [(each.rank, each.follows) for each in read_failures(tmp_path) if not each.follows] == [(1, False)]
    assert len(read_failures(tmp_path)) == 3
    cause = first_failure(tmp_path)
    assert cause is not None and cause.message == f"no CUDA device: {BROKEN}"
    assert from_batch_script(tmp_path, 0, "failed_node") == "n2"
    assert from_batch_script(tmp_path, 0, "failure_reason") == f"rank 1 on n2: exit code 1: no CUDA device: {BROKEN}"


@pytest.mark.parametrize(("with_devices", "on_cpu"), [([], True), ([0, 1], False)])
def test_all_alike_goes_on(with_devices: list[int], on_cpu: bool, tmp_path: Path) -> None:
    assert run_ranks(2, start, str(tmp_path), with_devices, timeout=60) == [(7, on_cpu)] * 2
