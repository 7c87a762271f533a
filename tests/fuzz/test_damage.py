"""The fuzzing harness itself: it draws the same inputs again, and tells a traceback and a hang from a refusal."""

import itertools
from pathlib import Path

import pytest

from megatron_compete.common.errors import CompeteError
from tests.fuzz import damage


def test_the_same_seed_draws_the_same_damage() -> None:
    drawn = [list(itertools.islice(damage.damaged([b"some text", b"{}"], seed), 200)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) > 100


def test_what_fails_is_told_from_what_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(damage, "HANG_SECONDS", 0.2)
    monkeypatch.setattr(damage, "NEW", tmp_path)

    def read(data: bytes) -> None:
        if data.startswith(b"refused"):
            raise CompeteError("FILE: no")
        if data.startswith(b"hang"):
            while True:
                pass
        if data.startswith(b"crash"):
            raise KeyError("x")

    assert damage.failure(read, b"taken") is None
    assert damage.failure(read, b"refused") is None
    assert "still reading" in str(damage.failure(read, b"hang"))
    assert "KeyError" in str(damage.failure(read, b"crash"))
    with pytest.raises(AssertionError, match="KeyError"):
        damage.fuzz("reader", [b"crash" * 20], read, inputs=50, seconds=60.0)
    assert list(tmp_path.glob("reader/*"))
    assert damage.fuzz("reader", [b"taken" * 20], lambda data: None, inputs=50, seconds=60.0) == 50
