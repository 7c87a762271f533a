"""SIGTERM before training begins: exit code 75 at once, whatever the process is doing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PRELUDE = """
import ctypes, os, signal, subprocess, sys, time
from megatron_compete.launch.stop_signal import leave_on_stop_signal, stop_signal_is_handled
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits that it is ignored
leave_on_stop_signal()
leave_on_stop_signal()
"""

BUSY = {
    "sleeping": "print('ready', flush=True); time.sleep(60)",
    "in C that no signal interrupts": (
        "libc = ctypes.CDLL(None); mutex = ctypes.create_string_buffer(128); libc.pthread_mutex_lock(mutex); "
        "print('ready', flush=True); libc.pthread_mutex_lock(mutex)"
    ),
    "with a handler of its own": (
        "signal.signal(signal.SIGTERM, lambda *_: None); print('ready', flush=True)\nwhile True: time.sleep(0.1)"
    ),
    "swallowing all exceptions": (
        "print('ready', flush=True)\nwhile True:\n try: time.sleep(1)\n except BaseException: pass"
    ),
}


def started(program: str, **environment: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + program],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "ready\n", process.stderr
    return process


@pytest.mark.parametrize("program", BUSY.values(), ids=BUSY)
def test_leaves_at_once(program: str) -> None:
    process = started(program)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 75
    assert said == "megatron-compete: told to stop before training began: there is nothing to save\n"


def test_rank_0_notes_the_outcome(tmp_path: Path) -> None:
    for rank, outcomes in (("1", []), ("0", ["stopped\nbefore training began\n"])):
        process = started(BUSY["sleeping"], COMPETE_RUN=str(tmp_path), COMPETE_ATTEMPT="4", RANK=rank)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 75
        assert [path.read_text() for path in (tmp_path / "outcomes").glob("*")] == outcomes


def test_other_signals_do_what_they_did() -> None:
    process = started("signal.signal(signal.SIGUSR1, lambda *_: print('usr1', flush=True))\n" + BUSY["sleeping"])
    process.send_signal(signal.SIGUSR1)
    assert process.stdout is not None and process.stdout.readline() == "usr1\n"
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=60)[1]


def test_after_start_up_the_signal_is_given_back() -> None:
    process = started("stop_signal_is_handled(); stop_signal_is_handled(); print('ready', flush=True); time.sleep(60)")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    kept = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(9)); stop_signal_is_handled(); " + BUSY["sleeping"]
    process = started(kept)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 9, "whoever took the signal over keeps it"


def test_a_child_neither_wakes_its_parent_nor_is_deaf() -> None:
    process = started(
        "read_end, write_end = os.pipe()\nchild = os.fork()\n"
        "if child == 0: os.write(write_end, b'x'); time.sleep(60); os._exit(1)\n"
        "os.read(read_end, 1); os.kill(child, signal.SIGTERM); print('ready', flush=True)\n"
        "status = os.waitpid(child, 0)[1]; time.sleep(0.5); print(os.waitstatus_to_exitcode(status), flush=True)"
    )
    assert process.communicate(timeout=60)[0] == "-15\n" and process.returncode == 0


def test_the_trainer_stops_while_it_still_imports() -> None:
    """SIGTERM as soon as torch's libraries are mapped, long before the trainer's main function."""
    command = [sys.executable, "-m", "megatron_compete.training.pretrain", "--num-layers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while "libtorch_cpu" not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 75 and "told to stop before training began" in said
