"""A sign of life during one long call that reports nothing itself."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

from megatron_compete.common.progress import LINE_SECONDS, format_seconds


@contextlib.contextmanager
def running_clock(title: str, line_seconds: float = LINE_SECONDS) -> Iterator[None]:
    """Show `title` and the time it has taken so far: a moving line on a terminal (stderr), a plain one now and then else.

    The call inside must let other threads run.
    """
    if sys.stderr.isatty():
        with _terminal_clock(title):
            yield
        return
    done = threading.Event()
    thread = threading.Thread(target=_print_lines, args=(title, line_seconds, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _print_lines(title: str, line_seconds: float, done: threading.Event) -> None:
    start = time.monotonic()
    while not done.wait(line_seconds):
        print(f"{title}: {format_seconds(time.monotonic() - start)} so far", flush=True)


@contextlib.contextmanager
def _terminal_clock(title: str) -> Iterator[None]:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(title, total=None)
        yield
