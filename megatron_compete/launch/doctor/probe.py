"""Imports with consequences, made in a child process: a crash or a hang there is a finding, not the end of the report."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

PARALLEL_PROBES = 4


@dataclass(frozen=True)
class Probed:
    """What a probe came back with.

    Args:
        state: `there` (it imports, `facts` are its answers), `missing` (not installed) or `broken` (installed, but its
            import failed, crashed or did not end).
        why: for `broken`, one line.
    """

    state: Literal["there", "missing", "broken"]
    facts: dict[str, Any] = field(default_factory=dict)
    why: str = ""


def probe_all(names: Sequence[str], timeout_seconds: float) -> dict[str, Probed]:
    """Run several probes of `child.PROBES`, a few at a time."""
    with ThreadPoolExecutor(PARALLEL_PROBES) as pool:
        return dict(zip(names, pool.map(lambda name: probe(name, timeout_seconds), names)))


def probe(name: str, timeout_seconds: float) -> Probed:
    """Run one probe of `child.PROBES` in a process of its own."""
    child = subprocess.Popen(
        [sys.executable, "-m", "megatron_compete.launch.doctor.child", name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # a compiler that the import started ends with it
    )
    try:
        answer, noise = child.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        return Probed("broken", why=f"its import did not end within {timeout_seconds:g} s")
    return _read(child.returncode, answer, noise)


def _read(exit_code: int, answer: str, noise: str) -> Probed:
    try:
        return Probed(**json.loads(answer))
    except (ValueError, TypeError):
        pass
    if exit_code < 0:
        return Probed("broken", why=f"its import ended the process with {_signal_name(-exit_code)}")
    last = next((line.strip() for line in reversed(noise.splitlines()) if line.strip()), "no message")
    return Probed("broken", why=f"its import ended the process with exit code {exit_code}: {last}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
