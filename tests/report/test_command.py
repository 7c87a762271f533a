"""`megatron-compete report`."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from megatron_compete.cluster.status_report import read_all
from megatron_compete.common.errors import CompeteError
from megatron_compete.report.command import ReportOptions, main, make_report
from tests.report.made_runs import make_run, scalar, write_events


def test_the_page_of_one_run_lies_in_its_folder_and_status_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    run = make_run(tmp_path / "run")
    (before,) = read_all([run])
    main([str(run)])
    assert capsys.readouterr().out == f"{run}/report.html\n"
    assert (run / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert (run / "report.html").stat().st_mode & 0o777 == 0o600, "as the recipe that it shows"
    (after,) = read_all([run])
    assert before.report is None and after.report == f"{run}/report.html"


def test_several_runs_need_a_file(tmp_path: Path) -> None:
    runs = [str(make_run(tmp_path / name, steps=3)) for name in ("a", "b")]
    with pytest.raises(CompeteError, match="2 runs: say by --out FILE"):
        main(runs)
    main([*runs, "--out", str(tmp_path / "new" / "both.html")])
    assert "<title>a, b</title>" in (tmp_path / "new" / "both.html").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"serve": True, "out": Path("x")}, "--out x and --serve exclude each other"),
        ({"port": 70000}, "--port 70000 is out of range"),
        ({"peak_tflops": 0.0}, "--peak-tflops 0 is out of range"),
        ({"peak_tflops": float("nan")}, "--peak-tflops nan is out of range"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused(more: dict, message: str) -> None:
    with pytest.raises(CompeteError, match=message):
        ReportOptions(runs=(Path("run"),), **more)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CompeteError, match="no run folder and holds no event files"):
        make_report(ReportOptions(runs=(tmp_path,)))


def test_a_served_report_follows_its_run_until_ctrl_c(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    command = [sys.executable, "-m", "megatron_compete", "report", str(run), "--serve", "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job inherits that it is ignored
    ) as server:  # fmt: skip
        assert server.stdout is not None and server.stderr is not None
        try:
            match = re.match(r"http://127\.0\.0\.1:\d+/", server.stdout.readline())
            assert match is not None
            first = json.load(urllib.request.urlopen(f"{match[0]}version", timeout=120))["version"]
            text = urllib.request.urlopen(match[0], timeout=120).read().decode()
            assert f'data-version="{first}"' in text and "1.5432" not in text
            write_events(run / "tensorboard", [scalar("lm loss", 1.54321, 41)], mode="ab")
            for _ in range(600):  # a page rests for some times as long as it took
                time.sleep(0.1)
                version = json.load(urllib.request.urlopen(f"{match[0]}version", timeout=120))["version"]
                if version != first:
                    break
            text = urllib.request.urlopen(match[0], timeout=120).read().decode()
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(60)
            finally:
                server.kill()  # nothing where it has ended
        assert server.returncode == 0 and server.stderr.read() == ""
    assert version != first and "1.5432" in text
