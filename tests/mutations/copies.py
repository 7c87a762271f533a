"""A copy of the package with one line changed at a time, and what a test says of it."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mutation:
    """A change of the package's meaning, and the test that must notice it."""

    file: str
    """Under `megatron_compete/`."""
    old: str
    """Text that the file holds exactly once."""
    new: str
    test: str
    """Under `tests/`, as pytest names it."""

    def __str__(self) -> str:
        return f"{self.file}: {self.old} -> {self.new}"

    def mutated(self, text: str) -> str:
        """The file's text with the change; an error unless there is just one place for it."""
        found = text.count(self.old)
        assert found == 1, f"{self.file} holds {self.old!r} {found} times: the mutation must change one place"
        return text.replace(self.old, self.new)


def copy_project(folder: Path) -> None:
    """Package, tests and pytest's settings."""
    for name in ("megatron_compete", "tests"):
        shutil.copytree(PROJECT / name, folder / name)
    shutil.copy(PROJECT / "pyproject.toml", folder)


class Mutant:
    """In a `with` block, the copy in `folder` has one mutation."""

    def __init__(self, folder: Path, mutation: Mutation) -> None:
        self.path = folder / "megatron_compete" / mutation.file
        self.mutation = mutation
        self.original = self.path.read_text()

    def __enter__(self) -> None:
        self.path.write_text(self.mutation.mutated(self.original))

    def __exit__(self, *_: object) -> None:
        self.path.write_text(self.original)


class TestServer:
    """A warm process that runs tests of copies; see `server.py`."""

    __test__ = False

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("server.py"))], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def run(self, folder: Path, *tests: str) -> dict[str, Any]:
        """How many of the tests passed and failed, up to the first failure."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([str(folder), [f"tests/{test}" for test in tests]]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
