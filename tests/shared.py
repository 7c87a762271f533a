"""Expensive results that several test files look at are made once in a test session, whichever worker needs them first."""

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

Shared = Callable[..., Any]
"""The fixture `shared` of `conftest.py`: call it with a function and its arguments."""


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """One folder for all of pytest-xdist's workers."""
    own = factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


def once(folder: Path, make: Callable[..., Any], *args: Any) -> Any:
    """`make(*args)` of whoever is first. Arguments are functions or tell themselves apart by `repr`; results are pickled."""
    name = hashlib.sha256(" ".join(map(_name, (make, *args))).encode()).hexdigest()[:16]
    path = folder / name
    with FileLock(folder / f"{name}.lock"):
        if not path.exists():
            path.write_bytes(pickle.dumps(make(*args)))
        return pickle.loads(path.read_bytes())


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}" if callable(value) else repr(value)
