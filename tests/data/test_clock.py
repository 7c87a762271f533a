"""A sign of life during a long call."""

import time

import pytest

from megatron_compete.data.clock import running_clock


def test_plain_lines_while_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with running_clock("training", line_seconds=0.01):
        while "training: 0 s so far\n" not in capsys.readouterr().out:
            time.sleep(0.005)
    capsys.readouterr()
    time.sleep(0.05)
    assert capsys.readouterr().out == ""


def test_nothing_for_a_short_call(capsys: pytest.CaptureFixture[str]) -> None:
    with running_clock("training"):
        pass
    assert capsys.readouterr() == ("", "")


def test_it_stops_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), running_clock("training", line_seconds=0.01):
        raise ZeroDivisionError
