"""Plain lines without a terminal, a bar with one."""

import io
import sys

import pytest

from megatron_compete.data import progress as progress_module
from megatron_compete.data.progress import CorpusProgress


def test_one_plain_line_an_interval_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with CorpusProgress("reading", total_bytes=100, log_interval=2) as progress:
        for _ in range(5):
            progress.advance(1, 20)
    captured = capsys.readouterr()
    assert [line.split(" (")[0] for line in captured.out.splitlines()] == [
        "reading: 2 documents",
        "reading: 4 documents",
    ]
    assert captured.err == ""
    assert (progress.documents, progress.bytes) == (5, 100)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress_module, "_REFRESH_SECONDS", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    with CorpusProgress("reading", total_bytes=100, log_interval=1) as progress:
        progress.advance(1, 50)
    assert "reading" in terminal.getvalue()
    assert capsys.readouterr().out == ""
