"""Megatron's dataset helpers are compiled where they must be and can be, and nowhere else."""

from collections.abc import Callable
from pathlib import Path

import pytest
from megatron.core.datasets import utils

from megatron_compete.training.dataset_helpers import use_prebuilt_helpers


@pytest.fixture
def compile_helpers(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Megatron's own, whatever a test puts in its place."""

    def upstream() -> None:
        raise AssertionError("compiles")

    monkeypatch.setattr(utils, "compile_helpers", upstream)
    return upstream


def test_the_wheel_needs_no_compiling(compile_helpers: Callable[[], None]) -> None:
    """Fails when the wheel brings a Makefile, and `training/dataset_helpers.py` can go."""
    with use_prebuilt_helpers():
        assert utils.compile_helpers is not compile_helpers
        utils.compile_helpers()
    assert utils.compile_helpers is compile_helpers


@pytest.mark.parametrize("files", [["Makefile", "helpers_cpp.cpython-312-x86_64-linux-gnu.so"], ["helpers.cpp"]])
def test_anything_else_is_left_to_megatron(
    files: list[str], compile_helpers: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in files:
        (tmp_path / name).touch()
    monkeypatch.setattr(utils, "__file__", str(tmp_path / "utils.py"))
    use_prebuilt_helpers()
    assert utils.compile_helpers is compile_helpers
