"""Run a command in a process forked from the warm server of `tests.ranks`, without the seconds that its imports take.

What a user's shell sees is the same: arguments, environment, folder, output, exit code. Each command keeps one test that
starts an interpreter of its own, for what only that shows: its imports, and what they print.
"""

import functools
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.ranks import warm_process


def run_warm(
    main: Callable[[], Any],
    *arguments: str,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    timeout: float = 300.0,
) -> subprocess.CompletedProcess[str]:
    """`main()`, importable, with these arguments on its command line and `environment` (this process's) as its own."""
    given = dict(os.environ if environment is None else environment)
    with tempfile.TemporaryDirectory() as folder:
        process = warm_process(_main, main, arguments, str(cwd), given, folder)
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise AssertionError(f"{' '.join(arguments)} is not done after {timeout:g} s")
        output, errors = (Path(folder, name).read_text(errors="replace") for name in ("1", "2"))
        return subprocess.CompletedProcess(arguments, process.exitcode, output, errors)


def run_script(
    path: Path, *arguments: str | Path, cwd: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`python path arguments`."""
    return run_warm(functools.partial(_script, str(path)), *map(str, arguments), cwd=cwd, environment=environment)


def _script(path: str) -> None:
    sys.argv[0] = path
    sys.path[0] = os.path.dirname(os.path.abspath(path))
    runpy.run_path(path, run_name="__main__")


def _main(main: Callable[[], Any], arguments: tuple[str, ...], cwd: str, environment: dict[str, str], folder: str) -> None:  # fmt: skip
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for number in (1, 2):
        file = os.open(f"{folder}/{number}", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    sys.argv = ["megatron-compete", *arguments]
    main()
