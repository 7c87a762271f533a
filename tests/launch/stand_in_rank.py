"""A rank without torch, for tests of launchers: leaves, fails or waits as its argument says.

    python stand_in_rank.py RANK=WISH ...

WISH: an exit code; -N (signal N to itself); `wait` (deaf to SIGTERM); `stop` (75 on SIGTERM, also where nothing is
said of a rank); `dependent` (records a failure of its own when rank 1 is gone, as a collective would).
"""

import os
import signal
import sys
import time
from pathlib import Path

RANK = int(os.environ["RANK"])


def main() -> None:
    """One rank."""
    wishes = dict(argument.split("=") for argument in sys.argv[1:])
    wish = wishes.get(str(RANK), "stop")
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.append(number))
    if RANK == 1 and "dependent" in wishes.values():
        Path(os.environ["COMPETE_RUN"], "rank1.pid").write_text(str(os.getpid()))
    print(f"rank {RANK} of {os.environ['WORLD_SIZE']} waits\n", end="", flush=True)
    if wish == "dependent":
        depend()
    elif wish == "wait":
        time.sleep(600)
    elif wish != "stop":
        time.sleep(0.5)
        leave(int(wish))
    while not stopping:
        time.sleep(0.05)
    time.sleep(0.5)  # saves
    print(f"rank {RANK} got SIGTERM {len(stopping)} times\n", end="", flush=True)
    leave(75)


def leave(code: int) -> None:
    """Exit, or die by a signal."""
    if code < 0:
        os.kill(os.getpid(), -code)
        time.sleep(60)
    raise SystemExit(code)


def depend() -> None:
    """Wait until rank 1 is gone, then fail."""
    from megatron_compete.launch.run_files import record_failure

    path = Path(os.environ["COMPETE_RUN"], "rank1.pid")
    while not path.exists() or not path.read_text() or is_alive(path.read_text()):
        time.sleep(0.01)
    record_failure("RuntimeError: connection closed by peer", RANK, int(os.environ["LOCAL_RANK"]), 1)
    leave(1)


def is_alive(process: str) -> bool:
    """Not a zombie either: its sockets would be closed before its agent looks."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    main()
