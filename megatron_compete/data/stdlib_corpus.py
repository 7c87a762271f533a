"""A corpus of real text that every machine already has: the running interpreter's standard library sources.

About 11 MB of Python with its prose in docstrings and comments. The demo and the tests train on it, so that neither
downloads anything. One document a module file: `{"text": ..., "source": "asyncio/base_events.py"}`.
"""

import hashlib
import json
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass

from megatron_compete.common.errors import CompeteError
from megatron_compete.common.files import StagedFiles

HELDOUT_SHARE = 0.03
"""Share of the text held out for validation, in whole modules; hashes of their paths decide which."""

SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "turtledemo", "site-packages", "dist-packages", "__pycache__", "lib-dynload"}
)
"""Folder names left out anywhere in the tree: tests (lib2to3/tests/data is not even valid Python), packages that are
not the library's own, and compiled files."""


@dataclass(frozen=True)
class StdlibCorpus:
    """What `write_stdlib_corpus` wrote; sizes are bytes of text, before JSON escapes."""

    train_path: str
    heldout_path: str
    train_documents: int
    heldout_documents: int
    train_bytes: int
    heldout_bytes: int
    skipped_files: int
    """Files left out because they are empty or not UTF-8."""


@dataclass(frozen=True)
class _Module:
    source: str
    text: str

    @property
    def size(self) -> int:
        return len(self.text.encode("utf-8"))

    def draw(self, purpose: str) -> float:
        """A number in [0, 1) that depends on the name alone."""
        digest = hashlib.sha256(f"{purpose}:{self.source}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64


def write_stdlib_corpus(folder: str, max_bytes: int | None = None, root: str | None = None) -> StdlibCorpus:
    """Write `train.jsonl` and `heldout.jsonl` into `folder`, both sorted by the modules' paths.

    The same interpreter always writes the same bytes.

    Args:
        folder: made if missing; the two files appear when complete.
        max_bytes: upper bound on the text in both files together; modules are then drawn by a hash of their path, so
            that a small corpus is a cross-section and not the beginning of the alphabet. None takes everything.
        root: folder of other Python sources to take instead, such as the installed packages'.
    Raises:
        CompeteError: the library has no sources here, or `max_bytes` is too small for one module on either side.
    """
    root = root or sysconfig.get_path("stdlib")
    modules, skipped = _read_modules(root)
    if not modules:
        raise CompeteError(f"no readable Python sources in {root}: this interpreter comes without its library's text")
    chosen = modules if max_bytes is None else _draw(modules, max_bytes, "choice")
    budget = int(HELDOUT_SHARE * sum(module.size for module in chosen))
    heldout = _draw(chosen, budget, "heldout") or sorted(chosen, key=lambda module: module.size)[:1]
    held = {module.source for module in heldout}
    train = [module for module in chosen if module.source not in held]
    if not train:
        raise CompeteError(f"max_bytes {max_bytes} holds fewer than two of the library's modules: try 200000")
    return _write(folder, train, heldout, skipped)


def stdlib_texts() -> Iterator[str]:
    """The library's modules, in an order drawn by their paths, so that any first part is a cross-section."""
    modules, _ = _read_modules(sysconfig.get_path("stdlib"))
    for module in sorted(modules, key=lambda module: module.draw("choice")):
        yield module.text


def _read_modules(root: str) -> tuple[list[_Module], int]:
    modules, skipped = [], 0
    for path in _module_files(root):
        try:
            with open(path, encoding="utf-8", newline="") as stream:  # newline="": keep the text as it is
                text = stream.read()
        except UnicodeDecodeError:
            text = ""
        if text.strip():
            modules.append(_Module(os.path.relpath(path, root).replace(os.sep, "/"), text))
        else:
            skipped += 1
    return sorted(modules, key=lambda module: module.source), skipped


def _module_files(root: str) -> Iterator[str]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name not in SKIPPED_FOLDERS)
        yield from (os.path.join(folder, name) for name in sorted(names) if name.endswith(".py"))


def _draw(modules: list[_Module], budget: int, purpose: str) -> list[_Module]:
    """Modules in the order of their draw, as far as `budget` bytes go; sorted by path."""
    drawn, total = [], 0
    for module in sorted(modules, key=lambda module: module.draw(purpose)):
        if total + module.size <= budget:
            drawn.append(module)
            total += module.size
    return sorted(drawn, key=lambda module: module.source)


def _write(folder: str, train: list[_Module], heldout: list[_Module], skipped: int) -> StdlibCorpus:
    train_path, heldout_path = os.path.join(folder, "train.jsonl"), os.path.join(folder, "heldout.jsonl")
    with StagedFiles() as staged:
        for path, modules in ((train_path, train), (heldout_path, heldout)):
            with open(staged.path(path), "w", encoding="utf-8", newline="\n") as stream:
                for module in modules:
                    record = {"text": module.text, "source": module.source}
                    stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        staged.commit()
    return StdlibCorpus(
        train_path=train_path,
        heldout_path=heldout_path,
        train_documents=len(train),
        heldout_documents=len(heldout),
        train_bytes=sum(module.size for module in train),
        heldout_bytes=sum(module.size for module in heldout),
        skipped_files=skipped,
    )
