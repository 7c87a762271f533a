"""What is said about the machine, its GPUs and its network."""

import resource
import shutil
import time
from collections import namedtuple
from pathlib import Path

import pytest

from megatron_compete.launch.doctor import gpus, network, system
from megatron_compete.launch.doctor.probe import Probed

Usage = namedtuple("Usage", "total used free")

H100 = {"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 85_000_000_000, "capability": "9.0", "error": ""}


def torch_with(devices: list[dict], **facts: object) -> Probed:
    common = {"cuda": "13.0", "driver_cuda": 13020, "cuda_error": "", "nccl": "2.28.9", "devices": devices}
    return Probed("there", common | facts)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file system is docker's 64 MiB of shared memory."""
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(2**26, 0, 2**26))


@pytest.mark.parametrize(("devices", "state"), [(0, "note"), (1, "note"), (8, "problem")])
def test_small_shared_memory_matters_to_several_gpus(small: None, tmp_path: Path, devices: int, state: str) -> None:
    finding = system.shared_memory_finding(tmp_path, devices)
    assert finding.state == state and "64 MiB" in finding.value and "--ipc=host" in finding.advice


def test_enough_shared_memory_is_ok_and_none_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(2**34, 0, 2**34))
    assert system.shared_memory_finding(tmp_path, 8).state == "ok"
    assert system.shared_memory_finding(tmp_path / "none", 0).state == "problem"


@pytest.mark.parametrize(
    ("soft", "hard", "state", "advice"),
    [
        (65536, 65536, "ok", ""),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, "ok", ""),
        (1024, 524288, "note", "ulimit -n"),
        (1024, 1024, "note", "LimitNOFILE"),
    ],
)
def test_open_files(soft: int, hard: int, state: str, advice: str) -> None:
    finding = system.open_files_finding(soft, hard)
    assert finding.state == state and advice in finding.advice


def test_locked_memory_matters_to_rdma() -> None:
    assert system.locked_memory_finding(2**23, rdma=False).state == "ok"
    needed = system.locked_memory_finding(2**23, rdma=True)
    assert needed.state == "problem" and needed.serves == ("infiniband",) and "8 MiB" in needed.value
    assert system.locked_memory_finding(resource.RLIM_INFINITY, rdma=True).state == "ok"


def test_a_full_disk_is_noted(small: None, tmp_path: Path) -> None:
    assert system.disk_finding(tmp_path).state == "note"


def test_a_file_server_with_another_clock_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "agrees" in system.clock_finding(tmp_path).value
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 3600)
    finding = system.clock_finding(tmp_path)
    assert finding.state == "note" and finding.value.startswith("3600 s behind the clock of")


def test_a_clock_that_nobody_keeps_in_step_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "_kernel_clock_state", lambda: system.UNSYNCHRONISED)
    assert "not kept in step" in system.clock_finding(tmp_path).value
    monkeypatch.setattr(system, "_kernel_clock_state", lambda: 0)
    assert system.clock_finding(tmp_path).state == "ok"


def test_memory_is_the_control_groups(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text("max\n")
    assert system.memory_finding(limit).state == "ok"
    limit.write_text(str(2**30))
    assert system.memory_finding(limit).value.startswith("1.0 GiB allowed of ")


def test_the_container_is_known_by_its_marks(tmp_path: Path) -> None:
    assert system.container_finding({}, tmp_path).value == "none"
    (tmp_path / ".singularity.d").mkdir()
    assert system.container_finding({}, tmp_path).value == "apptainer"
    assert system.container_finding({"ENROOT_ROOTFS": "/x"}, tmp_path / "else").value == "enroot"


def test_few_cpus_for_the_gpus_are_noted() -> None:
    assert system.processors_finding(10_000).state == "note" and system.processors_finding(0).state == "ok"


def test_equal_gpus_are_counted_and_unequal_ones_noted() -> None:
    cuda, nccl, devices, links = gpus.gpu_findings(torch_with([H100] * 8, peers=[True] * 56, nvlinks=[18] * 8))
    assert cuda.value.endswith("serves CUDA 13.2, torch was built for 13.0") and nccl.value == "2.28.9"
    assert devices.value == "8 x NVIDIA H100 80GB HBM3, 79 GiB, capability 9.0" and devices.state == "ok"
    assert links.state == "ok" and links.value.startswith("18 NVLinks a GPU; 56 of 56")
    mixed = list(gpus.gpu_findings(torch_with([H100, H100 | {"name": "A100"}], peers=[True, False], nvlinks=[18, 0])))
    assert mixed[2].state == "note" and "unequal" in mixed[2].advice
    assert (
        mixed[3].state == "note"
        and mixed[3].value == "no NVLink on 1 of 2 GPUs; 1 of 2 ordered pairs reach each other's memory"
    )


def test_a_gpu_that_does_not_compute_is_named() -> None:
    found = list(
        gpus.gpu_findings(torch_with([H100, H100 | {"error": "CUDA error: uncorrectable ECC error"}], peers=[True] * 2))
    )
    assert found[2].state == "problem" and "GPU 1: CUDA error: uncorrectable ECC" in found[2].value


def test_no_driver_is_missing_but_a_driver_that_fails_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpus, "KERNEL_DRIVER", tmp_path / "none")
    none = next(gpus.gpu_findings(torch_with([], driver_cuda=0, cuda_error="Found no NVIDIA driver")))
    assert none.state == "missing" and none.serves == ("gpu",) and "--gpus all" in none.advice
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23\n")
    monkeypatch.setattr(gpus, "KERNEL_DRIVER", tmp_path / "version")
    old = next(gpus.gpu_findings(torch_with([], driver_cuda=12080, cuda_error="The NVIDIA driver is too old")))
    assert (
        old.state == "problem" and old.value == "driver 580.95.05 serves CUDA 12.8; torch: The NVIDIA driver is too old"
    )
    bare = next(gpus.gpu_findings(torch_with([], driver_cuda=0, cuda_error="Found no NVIDIA driver")))
    assert bare.state == "problem" and "libcuda is missing" in bare.value
    assert [finding.state for finding in gpus.gpu_findings(torch_with([], cuda=None))] == ["missing"]


def resolve(monkeypatch: pytest.MonkeyPatch, **hosts: list[str]) -> None:
    monkeypatch.setattr(network, "addresses_of", lambda host: hosts.get(host, []))


def test_a_host_name_on_the_loopback_is_a_trap_for_several_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch, trap=["127.0.1.1", "::1"], good=["10.0.0.7"], both=["127.0.1.1", "10.0.0.7"])
    assert network.host_finding("trap", several_nodes=True).state == "problem"
    assert network.host_finding("trap", several_nodes=False).state == "note"
    assert network.host_finding("nobody", several_nodes=True).state == "problem"
    assert network.host_finding("good", several_nodes=True).state == "ok"
    assert network.host_finding("both", several_nodes=True).state == "ok"


def test_master_address(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch, n1=["10.0.0.1"])
    assert network.master_finding("n1", "29500").state == "ok"
    assert network.master_finding("n1", "").state == "note"
    assert network.master_finding("n9", "29500").state == "problem"


def test_this_host_resolves_itself_as_the_system_does() -> None:
    assert network.addresses_of("127.0.0.1") == ["127.0.0.1"]
    assert network.addresses_of("no-such-host.invalid") == []


def test_infiniband_ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert network.infiniband_finding(tmp_path / "none").state == "missing"
    for name, state in (("mlx5_0", "4: ACTIVE"), ("mlx5_1", "1: DOWN")):
        (tmp_path / name / "ports" / "1").mkdir(parents=True)
        (tmp_path / name / "ports" / "1" / "state").write_text(f"{state}\n")
    monkeypatch.setattr(network.os.path, "exists", lambda path: True)
    assert network.infiniband_finding(tmp_path).value == "1 of 2 devices active: mlx5_0"
    monkeypatch.setattr(network.os.path, "exists", lambda path: False)
    assert network.infiniband_finding(tmp_path).state == "problem"
    (tmp_path / "mlx5_0" / "ports" / "1" / "state").write_text("1: DOWN\n")
    assert "0 of 2 devices active" in network.infiniband_finding(tmp_path).value


def test_variables_that_steer_communication_are_shown() -> None:
    shown = list(network.network_findings({"NCCL_DEBUG": "INFO", "GLOO_SOCKET_IFNAME": "eth0", "HOME": "/root"}))[-1]
    assert shown.value == "GLOO_SOCKET_IFNAME=eth0, NCCL_DEBUG=INFO"
