"""Plain lines without a terminal, a bar with one."""

import io
import re
import sys

import pytest

from megatron_compete.common import progress as progress_module
from megatron_compete.common.progress import Progress, format_seconds


class _Clock:
    """A clock that the test sets."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    return clock


def test_one_plain_line_a_minute_on_stdout(clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("tokenising", total_bytes=10_000_000, done_bytes=2_000_000) as progress:
        for _ in range(4):
            clock.now += 20
            progress.advance(40, 1_000_000, 3_000_000, tokens=600)
        progress.show()
    captured = capsys.readouterr()
    assert captured.out == (
        "tokenising: 120 documents (2 documents/s, 0.1 MB/s, 30 tokens/s; 50% done, 1 min 40 s left)\n"
    )
    assert captured.err == ""


def test_lines_by_documents(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("reading", total_bytes=100, log_interval=2) as progress:
        for _ in range(5):
            progress.advance(1, 20)
    assert re.findall(r"reading: (\d)", capsys.readouterr().out) == ["2", "4"]
    assert (progress.documents, progress.bytes, progress.text_bytes) == (5, 100, 100)


def test_unknown_size_has_no_end(clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("reading", total_bytes=0) as progress:
        clock.now += 61
        progress.advance(1, 20)
    assert "left" not in capsys.readouterr().out


def test_seconds_in_words() -> None:
    assert [format_seconds(seconds) for seconds in (9.6, 61, 7260)] == ["10 s", "1 min 1 s", "2 h 1 min"]


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress_module, "_REFRESH_SECONDS", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    with Progress("reading", total_bytes=100) as progress:
        progress.advance(1, 50)
    assert "reading" in terminal.getvalue() and "documents/s" in terminal.getvalue()
    assert capsys.readouterr().out == ""
