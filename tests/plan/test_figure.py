"""The figure of a plan."""

from pathlib import Path

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.plan.figure import check_figure_path, draw_plan, outcomes_at
from tests.plan.planned import planned


@pytest.mark.parametrize("overrides", [(), ("--router", "topk")], ids=("compete", "topk"))
def test_a_figure_is_written_whole(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    plan, overhead = planned(*overrides)
    path = tmp_path / "new" / "plan.png"
    draw_plan(overhead, plan.memory, plan.hardware.memory_bytes, path, "demo")
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000
    assert [item.name for item in path.parent.iterdir()] == ["plan.png"]


def test_a_failed_figure_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    def full(self: Figure, path: str, **kwargs: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    plan, overhead = planned()
    path = tmp_path / "plan.png"
    path.write_bytes(b"old")
    with pytest.raises(CompeteError, match="cannot be written: No space left on device"):
        draw_plan(overhead, plan.memory, 1e9, path)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_paths_that_cannot_be_are_refused_at_once(tmp_path: Path) -> None:
    check_figure_path(tmp_path / "plan.PNG")
    with pytest.raises(CompeteError, match=r"plan.txt: the suffix is none of .*png"):
        check_figure_path(tmp_path / "plan.txt")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(CompeteError, match="is a folder"):
        check_figure_path(tmp_path / "folder.png")


def test_policies_are_compared_at_the_recipes_limit() -> None:
    _, overhead = planned()
    found = [(outcome.policy, outcome.max_active) for outcome in outcomes_at(overhead, 2)]
    assert found == [("balanced", 2), ("shifted", 2), ("bernoulli", 16)]
    assert [outcome.policy for outcome in outcomes_at(overhead, 1)] == ["bernoulli"]
