"""How far a pass over a corpus has come: a bar on a terminal, one plain line an interval elsewhere."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress

MEGABYTE = 1_000_000
_REFRESH_SECONDS = 0.1


class CorpusProgress:
    """Counts documents and bytes, and shows them.

    On a terminal (stderr) a rich bar over the bytes, which leaves no trace when it ends. Elsewhere a line on stdout
    every `log_interval` documents: stderr then carries warnings and errors alone.

    Args:
        title: what is being done, in a word or two.
        total_bytes: size of the input; the bar's full length.
        log_interval: documents between two plain lines.
    """

    def __init__(self, title: str, total_bytes: int, log_interval: int) -> None:
        self.title = title
        self.total_bytes = total_bytes
        self.log_interval = log_interval
        self.documents = 0
        self.bytes = 0
        self._start = time.monotonic()
        self._refreshed = self._start
        self._bar: Progress | None = None

    @property
    def seconds(self) -> float:
        """Seconds since the pass began."""
        return max(time.monotonic() - self._start, 1e-9)

    def advance(self, documents: int, size: int) -> None:
        """Count `documents` more, and `size` more bytes of input."""
        self.documents += documents
        self.bytes += size
        if self._bar is not None:
            self._draw()
        elif documents and self.documents % self.log_interval == 0:
            rate = f"{self.documents / self.seconds:.0f} docs/s, {self.bytes / MEGABYTE / self.seconds:.1f} MB/s"
            print(f"{self.title}: {self.documents} documents ({rate})", flush=True)

    def _draw(self) -> None:
        assert self._bar is not None
        if time.monotonic() - self._refreshed >= _REFRESH_SECONDS:
            self._refreshed = time.monotonic()
            self._bar.update(self._bar.task_ids[0], completed=self.bytes, refresh=True)

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        if sys.stderr.isatty():
            self._bar = _bar()
            self._bar.add_task(self.title, total=self.total_bytes)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _bar() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    # No refresh thread: workers are forked while the bar is up, and a fork copies a thread's locks but not the thread.
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True, auto_refresh=False)
