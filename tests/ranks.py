"""Run a function on several gloo ranks, forked from a server process that has imported Megatron once.

A fresh rank costs 11 ms of processor time, so none is used twice: tests of exactness see nothing of earlier ones.
"""

import faulthandler
import multiprocessing
import multiprocessing.forkserver
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from megatron_compete.launch.ports import free_port

CRASH = re.compile(r"SIG\w+\(\d+\), PID")
"""How torch begins what it tells of a fatal signal: the native stack of the thread that met it, then those of the others."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.preload"])


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 240.0) -> list[Any]:
    """`function(*args)` on `world_size` ranks with the CPU stand-in active and the launcher's variables set.

    `function` must be importable (module level). Returns each rank's result. A rank that fails, or that is not done
    after `timeout` seconds, fails the test with its output; the others are ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        processes = [
            warm_process(_rank_main, rank, world_size, port, folder, function, args) for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        try:
            _wait(processes, Path(folder), time.monotonic() + timeout)
        finally:
            for process in processes:
                process.kill()
                process.join()
        return [torch.load(Path(folder, f"{rank}.pt"), weights_only=False) for rank in range(world_size)]


def warm_process(function: Callable[..., None], *args: Any) -> Any:
    """A process forked from the server, not yet started, that will call `function(*args)`."""
    with mock.patch.dict(os.environ, CUDA_VISIBLE_DEVICES=""):  # these are CPU processes, whatever the host has
        multiprocessing.forkserver.ensure_running()
    return _context.Process(target=function, args=args)


def run_rank(function: Callable[..., Any], *args: Any, timeout: float = 240.0) -> Any:
    """`run_ranks` with one rank."""
    return run_ranks(1, function, *args, timeout=timeout)[0]


def _wait(processes: list[Any], folder: Path, deadline: float) -> None:
    while True:
        failed = [rank for rank, process in enumerate(processes) if process.exitcode not in (None, 0)]
        if failed:
            time.sleep(0.5)  # let the others write down what they saw
            ends = "\n".join(f"rank {rank} {_end(processes[rank].exitcode)}" for rank in failed)
            raise AssertionError("\n".join([ends, *(_output(folder, rank) for rank in range(len(processes)))]))
        if all(process.exitcode == 0 for process in processes):
            return
        if time.monotonic() > deadline:
            late = [rank for rank, process in enumerate(processes) if process.exitcode is None]
            raise AssertionError(f"ranks {late} are not done\n" + "\n".join(_output(folder, r) for r in late))
        time.sleep(0.02)


def _end(exitcode: int) -> str:
    """A rank that lost its peers ends with a code, the one that they lost often with a signal."""
    return f"was ended by {signal.Signals(-exitcode).name}" if exitcode < 0 else f"ended with {exitcode}"


def _output(folder: Path, rank: int) -> str:
    path = folder / f"{rank}.log"
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    crash = next((number for number, line in enumerate(lines) if CRASH.match(line)), None)
    shown = lines[-80:] if crash is None else lines[max(0, crash - 20) :][:120] + ["..."] + lines[-80:]
    return f"--- rank {rank}\n" + "\n".join(shown)


def _rank_main(rank: int, size: int, port: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:  # fmt: skip
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1",
    )  # fmt: skip
    log = open(Path(folder, f"{rank}.log"), "w", buffering=1)  # noqa: SIM115  open as long as the process
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    faulthandler.enable(log)  # a crash in native code says where every thread was,
    torch._C._set_print_stack_traces_on_fatal_signal(True)  # and the native stacks before that
    torch.set_num_threads(1)
    try:
        from megatron_compete.launch import cpu_backend as cpu

        cpu.activate()
        torch.save(function(*args), Path(folder, f"{rank}.pt"))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        raise SystemExit(1) from None
