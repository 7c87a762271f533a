"""Nothing of a checkpoint is run, whatever its pickles say."""

import argparse
import enum
import io
import pickle
import signal
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_compete.checkpoint.restricted import Opaque, load_metadata, load_plain, load_tensor
from megatron_compete.common.errors import CompeteError


class Touch:
    """Unpickled freely, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


class Evaluate:
    """Unpickled freely, it evaluates a string."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return eval, (self.code,)


class Colour(enum.Enum):
    RED = 1


def as_saved(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


@pytest.mark.parametrize("harm", [Touch, lambda path: Evaluate(f"open({str(path)!r}, 'w')")])
def test_metadata_runs_nothing(tmp_path: Path, harm: Callable[[Path], object]) -> None:
    path, mark = tmp_path / ".metadata", tmp_path / "mark"
    path.write_bytes(pickle.dumps({"state": harm(mark)}))
    with pytest.raises(CompeteError, match="nothing of it was run: it asks for"):
        load_metadata(path)
    assert not mark.exists()


def test_metadata_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / ".metadata"
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(CompeteError, match="it holds a list"):
        load_metadata(path)
    path.write_bytes(b"no pickle")
    with pytest.raises(CompeteError, match="is not the index of a checkpoint"):
        load_metadata(path)


def test_common_state_runs_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    harm = Evaluate(f"open({str(mark)!r}, 'w')")
    state = load_plain(as_saved({"args": argparse.Namespace(harm=harm, lr=1.0)}), "it")
    assert isinstance(state["args"].harm, Opaque)
    assert state["args"].lr == 1.0
    with pytest.raises(CompeteError, match=r"it is damaged, or would run code .* unrecognized function") as caught:
        load_plain(as_saved({"args": argparse.Namespace(harm=Touch(mark))}), "it")
    assert "weights_only" not in str(caught.value)
    assert not mark.exists()


def test_enums_of_loaded_modules_are_themselves() -> None:
    assert load_plain(as_saved({"colour": Colour.RED, "end": signal.SIGTERM}), "it") == {
        "colour": Colour.RED,
        "end": signal.SIGTERM,
    }


def test_enums_of_other_modules_are_opaque(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = types.ModuleType("elsewhere")
    shape = enum.Enum("Shape", {"ROUND": 3}, module="elsewhere")
    elsewhere.Shape = shape  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "elsewhere", elsewhere)
    data = as_saved(shape["ROUND"])
    monkeypatch.delitem(__import__("sys").modules, "elsewhere")
    value = load_plain(data, "it")
    assert isinstance(value, Opaque)
    assert repr(value) == "Shape(3)"


def test_damaged_files() -> None:
    with pytest.raises(CompeteError, match="the state is damaged"):
        load_plain(b"rubbish", "the state")
    with pytest.raises(CompeteError, match="w is damaged"):
        load_tensor(io.BytesIO(as_saved(torch.ones(3))[:-40]), "w")
    with pytest.raises(CompeteError, match="it holds a int instead of a tensor"):
        load_tensor(io.BytesIO(as_saved(3)), "w")
    with pytest.raises(CompeteError, match="w is damaged"):
        load_tensor(io.BytesIO(as_saved(Touch(Path("/nowhere")))), "w")
