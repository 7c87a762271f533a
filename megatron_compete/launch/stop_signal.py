"""The stop signal, SIGTERM, until training begins: the process leaves at once, because there is nothing to save.

Start-up is minutes of imports, of waiting for other nodes and of compiled code, in which Python runs no signal handler.
So the signal wakes a thread, through `signal.set_wakeup_fd`, and that thread ends the process. Whatever installs a
handler of its own meanwhile, as Megatron does, does not matter. Nothing heavy is imported here.
"""

import os
import signal
import threading
from types import FrameType

from megatron_compete.launch.run_files import current_run

STOPPED_EXIT_CODE = os.EX_TEMPFAIL
"""75: told to stop, and the same command goes on from the last checkpoint."""

RANK_VARIABLES = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")
"""Where a launcher may have put this process's rank; the first one that is set counts."""


class _Watch:
    """The pipe that the signal writes to, and what to restore when it is closed."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.write_end, False)
        self.former_handler = signal.signal(signal.SIGTERM, _nothing)
        self.former_wakeup = signal.set_wakeup_fd(self.write_end, warn_on_full_buffer=False)
        threading.Thread(target=self.wait, name="stop-signal", daemon=True).start()

    def wait(self) -> None:
        """Read signal numbers until the pipe is closed."""
        while received := os.read(self.read_end, 64):
            if signal.SIGTERM in received:
                _leave()
        os.close(self.read_end)

    def close(self) -> None:
        """Give the signal back to whoever had it before, unless someone has taken it over."""
        if signal.getsignal(signal.SIGTERM) is _nothing:
            signal.signal(signal.SIGTERM, self.former_handler)
        signal.set_wakeup_fd(self.former_wakeup)
        os.close(self.write_end)

    def forget_in_child(self) -> None:
        """A forked child must neither wake its parent nor be deaf to SIGTERM."""
        signal.set_wakeup_fd(-1)
        if signal.getsignal(signal.SIGTERM) is _nothing:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


_watch: _Watch | None = None


def leave_on_stop_signal() -> None:
    """From here SIGTERM ends this process with exit code 75; again is harmless. Call from the main thread."""
    global _watch
    if _watch is None and threading.current_thread() is threading.main_thread():
        _watch = _Watch()


def stop_signal_is_handled() -> None:
    """Start-up is over: SIGTERM is whoever's that has installed a handler, or does what it did before."""
    global _watch
    watch, _watch = _watch, None
    if watch is not None:
        watch.close()


def rank_from_launcher() -> int:
    """This process's rank as far as it is known without judging the environment; 0 where nobody says."""
    values = (os.environ.get(name, "") for name in RANK_VARIABLES)
    return next((int(value) for value in values if value.isdecimal()), 0)


def _nothing(number: int, frame: FrameType | None) -> None:
    """Python writes to the wakeup pipe only for signals that have a handler."""


def _leave() -> None:
    try:
        if rank_from_launcher() == 0:
            os.write(2, b"megatron-compete: told to stop before training began: there is nothing to save\n")
            run = current_run()
            if run is not None:
                run.write_outcome("stopped", "before training began")
    finally:
        os._exit(STOPPED_EXIT_CODE)


def _in_child() -> None:
    global _watch
    watch, _watch = _watch, None
    if watch is not None:
        watch.forget_in_child()


os.register_at_fork(after_in_child=_in_child)
