"""Runs tests of a copy of this project, each in a process forked from one that has imported torch and Megatron.

    python tests/mutations/server.py < REQUESTS > ANSWERS

A request is a line of JSON, [folder, [test, ...]]; the answer is one too, {"passed": n, "failed": n, "broken": text}.
Neither the package nor its tests are imported before the fork, so that each process imports those of its folder.
"""

import contextlib
import importlib
import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

LIMIT_S = 300  # below pytest's own limit, so that an answer always belongs to the last request
WARM = ("hypothesis", "networkx", "torch.utils.tensorboard", "megatron.training", "megatron.training.models.gpt")


class Tally:
    """A pytest plugin that counts outcomes."""

    def __init__(self) -> None:
        self.passed = self.failed = 0
        self.broken = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A test fails in its call or where it is set up, and passes in its call."""
        self.failed += report.failed
        self.passed += report.passed and report.when == "call"

    def pytest_collectreport(self, report: Any) -> None:
        """A file that cannot be imported says nothing of its tests."""
        if report.failed:
            self.broken = str(report.longrepr)


def run_tests(folder: str, tests: list[str], answer: str) -> None:
    """In a process of its own: these tests with the package in `folder`, and what became of them into a file."""
    os.chdir(folder)
    sys.path.insert(0, folder)
    package = importlib.import_module("megatron_compete")
    assert package.__file__ and package.__file__.startswith(folder), package.__file__
    _fork_ranks(importlib.import_module("tests.ranks"))
    import pytest

    tally = Tally()
    with open(f"{answer}.log", "w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        code = pytest.main(["-q", "-x", "-m", "", "-p", "no:cacheprovider", *tests], plugins=[tally])
    if code not in (0, 1) and not tally.broken:
        tally.broken = f"pytest ended with {code}: " + Path(f"{answer}.log").read_text()[-2000:]
    Path(answer).write_text(json.dumps(vars(tally)))


def _fork_ranks(ranks: Any) -> None:
    """Distributed tests fork their ranks from this process, not from a server that would import everything anew."""
    context = multiprocessing.get_context("fork")
    ranks.warm_process = lambda function, *args: context.Process(target=function, args=args)


def main() -> None:
    os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", TRITON_INTERPRET="1", PYTHONDONTWRITEBYTECODE="1")
    for name in ("CI", "BUILD_NUMBER"):  # pytest shows whole differences there, which takes minutes for a large table
        os.environ.pop(name, None)
    sys.dont_write_bytecode = True
    for name in WARM:
        importlib.import_module(name)
    assert not any(name.startswith(("megatron_compete", "tests")) for name in sys.modules)
    for line in sys.stdin:
        folder, tests = json.loads(line)
        answer = Path(folder, "answer.json")
        answer.unlink(missing_ok=True)
        process = multiprocessing.get_context("fork").Process(target=run_tests, args=(folder, tests, str(answer)))
        process.start()
        process.join(LIMIT_S)
        if process.is_alive():
            process.kill()
            process.join()
        if not answer.exists():
            ended = f"ended with {process.exitcode} (limit: {LIMIT_S} s)"
            answer.write_text(json.dumps(dict(passed=0, failed=0, broken=ended)))
        print(answer.read_text(), flush=True)


if __name__ == "__main__":
    main()
