"""What of the optimiser is drawn, and what only where it changes."""

from pathlib import Path

from tests.report.made_pages import missing, page_of, titles
from tests.report.made_runs import scalar, write_events


def test_a_batch_is_drawn_where_it_changes(tmp_path: Path) -> None:
    write_events(tmp_path / "same", [scalar("batch-size", 8.0, step) for step in (1, 2)])
    write_events(tmp_path / "ramp", [scalar("batch-size", 8.0 * step, step) for step in (1, 2)])
    assert "Sequences per step" not in titles(page_of(tmp_path / "same"))
    assert "Sequences per step" in titles(page_of(tmp_path / "ramp"))


def test_what_every_trainer_logs_is_missed(tmp_path: Path) -> None:
    write_events(tmp_path / "tb", [scalar("grad-norm", 1.0, 1), scalar("params-norm", 1.0, 1)])
    page = page_of(tmp_path / "tb")
    assert "Learning rate: not logged" in missing(page) and "Gradient norm" not in missing(page)
    assert {"Gradient norm", "Norm of the parameters"} <= set(titles(page))
