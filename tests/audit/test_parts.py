from pathlib import Path

import pytest
import torch

from megatron_compete.audit import parts
from megatron_compete.audit.parts import Ranks, carry_out, zeros
from tests.ranks import run_ranks


class Counting:
    """Adds each unit's number; fails before the unit it is told."""

    name = "counting"

    def __init__(self, units: int, fails_at: int | None = None) -> None:
        self.units, self.fails_at, self.done = units, fails_at, list[int]()
        self.state = {"sum": zeros(), "each": zeros(units)}

    def step(self, unit: int) -> None:
        if unit == self.fails_at:
            raise KeyboardInterrupt
        self.done.append(unit)
        self.state["sum"] += unit
        self.state["each"][unit] += 1


def test_every_unit_once(tmp_path: Path) -> None:
    part = Counting(5)
    carry_out(part, tmp_path, "a", Ranks())
    assert part.state["sum"] == 10 and part.state["each"].tolist() == [1] * 5


def test_goes_on_where_it_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "SAVE_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        carry_out(Counting(6, fails_at=4), tmp_path, "a", Ranks())
    second = Counting(6)
    carry_out(second, tmp_path, "a", Ranks())
    assert second.done == [4, 5] and second.state["each"].tolist() == [1] * 6
    third = Counting(6)
    assert carry_out(third, tmp_path, "a", Ranks()) > 0 and third.done == [] and third.state["sum"] == 15


def test_what_another_audit_or_damage_left_is_not_used(tmp_path: Path) -> None:
    carry_out(Counting(3), tmp_path, "a", Ranks())
    other = Counting(3)
    carry_out(other, tmp_path, "b", Ranks())
    assert other.done == [0, 1, 2]
    (kept,) = tmp_path.glob("*.safetensors")
    kept.write_bytes(kept.read_bytes()[:20])
    again = Counting(3)
    carry_out(again, tmp_path, "b", Ranks())
    assert again.done == [0, 1, 2] and again.state["sum"] == 3


def on_rank(folder: str) -> tuple[list[int], dict[str, torch.Tensor]]:
    part = Counting(5)
    carry_out(part, Path(folder), "a", Ranks.from_environment())
    return part.done, part.state


def test_ranks_share_the_units_and_all_have_the_sums(tmp_path: Path) -> None:
    (first, state), (second, other), (third, _) = run_ranks(3, on_rank, str(tmp_path))
    assert (first, second, third) == ([0, 3], [1, 4], [2])
    for found in (state, other):
        assert found["sum"] == 10 and found["each"].tolist() == [1] * 5
