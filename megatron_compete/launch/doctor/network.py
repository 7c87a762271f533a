"""Findings about the network: how this host is known, where the job is to meet, InfiniBand, variables that steer it."""

import ipaddress
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from megatron_compete.launch.doctor.finding import Finding, State

GROUP = "Network"

INFINIBAND = Path("/sys/class/infiniband")

STEERING = ("NCCL_", "TORCH_NCCL_", "GLOO_", "UCX_", "OMPI_MCA_", "NVSHMEM_", "FI_")
"""Prefixes of variables that change how ranks talk to each other."""


def network_findings(environment: Mapping[str, str]) -> Iterator[Finding]:
    """All of them."""
    yield host_finding(socket.gethostname(), int(environment.get("SLURM_JOB_NUM_NODES", "1")) > 1)
    if "MASTER_ADDR" in environment:
        yield master_finding(environment["MASTER_ADDR"], environment.get("MASTER_PORT", ""))
    yield infiniband_finding(INFINIBAND)
    steering = sorted(name for name in environment if name.startswith(STEERING))
    if steering:
        yield Finding(GROUP, "variables", "ok", ", ".join(f"{name}={environment[name]}" for name in steering))


def addresses_of(host: str) -> list[str]:
    """Addresses that a name resolves to here; none where it does not."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return list(dict.fromkeys(str(address[4][0]) for address in found))


def host_finding(host: str, several_nodes: bool) -> Finding:
    """This host's own name: gloo listens on the address that it resolves to, and others must reach that."""
    addresses = addresses_of(host)
    state: State = "problem" if several_nodes else "note"
    advice = "gloo and torchrun use this name: put the node's address into /etc/hosts, or set GLOO_SOCKET_IFNAME"
    if not addresses:
        return Finding(GROUP, "host name", state, f"{host} does not resolve", advice, ("training",), per_node=True)
    value = f"{host} is {', '.join(addresses)}"
    if all(ipaddress.ip_address(address.split("%")[0]).is_loopback for address in addresses):
        value += ", which only this host reaches"
        return Finding(GROUP, "host name", state, value, advice if several_nodes else f"with several nodes: {advice}", ("training",), per_node=True)  # fmt: skip
    return Finding(GROUP, "host name", "ok", value, per_node=True)


def master_finding(address: str, port: str) -> Finding:
    """Where the ranks are to meet."""
    value = f"{address}:{port}" if port else f"{address}, MASTER_PORT is not set"
    if not addresses_of(address):
        advice = "name a host that every node resolves; our launchers derive it from Slurm's node list"
        return Finding(GROUP, "MASTER_ADDR", "problem", f"{value} does not resolve", advice, ("training",))
    return Finding(GROUP, "MASTER_ADDR", "ok" if port else "note", value, "" if port else "set both or neither")


def infiniband_finding(devices: Path) -> Finding:
    """RDMA devices (InfiniBand or RoCE) and their active ports."""
    names = sorted(path.name for path in devices.iterdir()) if devices.is_dir() else []
    if not names:
        return Finding(
            GROUP, "InfiniBand", "missing", "no devices", "NCCL goes over TCP between nodes", ("infiniband",)
        )
    active = [name for name in names if any(_is_active(port) for port in (devices / name / "ports").glob("*"))]
    value = f"{len(active)} of {len(names)} devices active: {', '.join(active) or ', '.join(names)}"
    if not active:
        return Finding(
            GROUP, "InfiniBand", "problem", value, "see ibstat: cable, switch or subnet manager", ("infiniband",)
        )
    if not os.path.exists("/dev/infiniband"):
        advice = "hand /dev/infiniband into the container"
        return Finding(GROUP, "InfiniBand", "problem", f"{value}; /dev/infiniband is missing", advice, ("infiniband",))
    return Finding(GROUP, "InfiniBand", "ok", value, serves=("infiniband",))


def has_rdma() -> bool:
    """Whether there are RDMA devices at all."""
    return INFINIBAND.is_dir() and any(INFINIBAND.iterdir())


def _is_active(port: Path) -> bool:
    try:
        return "ACTIVE" in (port / "state").read_text()
    except OSError:
        return False
