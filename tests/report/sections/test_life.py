"""A run's attempts, failures and all that happened."""

from pathlib import Path

from tests.report.made_pages import page_of, section
from tests.report.made_runs import make_run


def test_attempts_failures_and_all_that_happened_are_tables(tmp_path: Path) -> None:
    tables = {t.caption: t for t in section(page_of(make_run(tmp_path / "run")), "Attempts, stops, failures, checkpoints").tables}  # fmt: skip
    assert [row[4] for row in tables["Attempts"].rows] == ["failed", "finished"]
    assert tables["Failed ranks"].rows[0][-1] == "out of memory" and len(tables["In order"].rows) == 4
