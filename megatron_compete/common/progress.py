"""How far a pass over a corpus has come: a bar on a terminal, one plain line a minute elsewhere."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

MEGABYTE = 1_000_000
LINE_SECONDS = 60.0
"""Time between two plain lines."""

_REFRESH_SECONDS = 0.1


class Progress:
    """Counts documents, bytes and tokens, and shows them.

    On a terminal (stderr) a rich bar over the bytes on disk, which leaves no trace when it ends. Elsewhere a line on
    stdout every minute: stderr then carries warnings and errors alone.

    Args:
        title: what is being done, in a word or two.
        total_bytes: size of the input on disk; 0 if it is not known.
        log_interval: documents between two plain lines, in place of a minute.
        done_bytes: bytes on disk that an earlier run has done.
        unit: what is counted.
    """

    def __init__(
        self,
        title: str,
        total_bytes: int,
        log_interval: int | None = None,
        done_bytes: int = 0,
        unit: str = "documents",
    ) -> None:
        self.title, self.unit = title, unit
        self.total_bytes = total_bytes
        self.log_interval = log_interval
        self.done_bytes = done_bytes
        self.documents = 0
        self.bytes = 0
        self.text_bytes = 0
        self.tokens = 0
        self._start = self._shown = time.monotonic()
        self._shown_documents = 0
        self._bar: RichProgress | None = None

    @property
    def seconds(self) -> float:
        """Seconds since the pass began."""
        return max(time.monotonic() - self._start, 1e-9)

    def advance(self, documents: int, size: int, text_bytes: int | None = None, tokens: int = 0) -> None:
        """Count what was done since the last call.

        Args:
            size: bytes of input on disk.
            text_bytes: the same decompressed, if that is another number.
        """
        self.documents += documents
        self.bytes += size
        self.text_bytes += size if text_bytes is None else text_bytes
        self.tokens += tokens
        self.show()

    def show(self) -> None:
        """Show the state if it is time to; to be called now and then."""
        now = time.monotonic()
        if self._bar is not None:
            if now - self._shown >= _REFRESH_SECONDS:
                self._shown = now
                self._bar.update(self._bar.task_ids[0], completed=self._bytes_done, rates=self.rates(), refresh=True)
        elif self._is_due(now):
            self._shown, self._shown_documents = now, self.documents
            print(f"{self.title}: {self.documents} {self.unit} ({self.rates()}{self._remaining()})", flush=True)

    def rates(self) -> str:
        """`120 documents/s, 3.1 MB/s, 900000 tokens/s`, of this pass so far."""
        rates = (
            f"{self.documents / self.seconds:.0f} {self.unit}/s, {self.text_bytes / MEGABYTE / self.seconds:.1f} MB/s"
        )
        return rates + (f", {self.tokens / self.seconds:.0f} tokens/s" if self.tokens else "")

    @property
    def _bytes_done(self) -> int:
        return min(self.done_bytes + self.bytes, self.total_bytes)

    def _is_due(self, now: float) -> bool:
        if self.log_interval is None:
            return now - self._shown >= LINE_SECONDS
        return self.documents // self.log_interval > self._shown_documents // self.log_interval

    def _remaining(self) -> str:
        """Share done and time left, by the bytes on disk."""
        if not self.total_bytes or not self.bytes:
            return ""
        left = (self.total_bytes - self._bytes_done) / (self.bytes / self.seconds)
        return f"; {self._bytes_done / self.total_bytes:.0%} done, {format_seconds(left)} left"

    def __enter__(self) -> Self:
        self._start = self._shown = time.monotonic()
        if sys.stderr.isatty():
            self._bar = _bar()
            self._bar.add_task(self.title, total=self.total_bytes or None, completed=self.done_bytes, rates="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def format_seconds(seconds: float) -> str:
    """`2 h 5 min`, `5 min 10 s` or `10 s`."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _bar() -> "RichProgress":
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TextColumn("{task.fields[rates]}"))
    # No refresh thread: workers are forked while the bar is up, and a fork copies a thread's locks but not the thread.
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True, auto_refresh=False)
