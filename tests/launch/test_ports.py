"""A port that is handed out is free, and none that the kernel hands out too."""

import secrets
import socket
from pathlib import Path

import pytest

from megatron_compete.launch.environment import FIRST_PORT
from megatron_compete.launch.ports import COUNT, FIRST, free_port


def test_what_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
        taken.listen()
        number = taken.getsockname()[1]
        drawn = iter([number - FIRST, number - FIRST, 7])
        monkeypatch.setattr(secrets, "randbelow", lambda count: next(drawn))
        assert free_port() == FIRST + 7


def test_ports_of_jobs_and_of_the_kernel_are_others() -> None:
    assert FIRST + COUNT <= FIRST_PORT
    ranges = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if ranges.exists():
        assert int(ranges.read_text().split()[0]) >= FIRST + COUNT
