"""Who competed, and what is said where nobody did or A_max is not known."""

from pathlib import Path

import pytest

from tests.report.made_pages import missing, page_of, section
from tests.report.made_runs import make_run, scalar, write_events


def test_the_table_says_how_much_a_run_competed(tmp_path: Path) -> None:
    scalars = {"competition/active-layers": [0, 2, 0, 3], "competition/agreement": [0.25, 0.5, 0.5, 0.75]}
    write_events(tmp_path / "tb", [scalar(tag, value, step) for tag, each in scalars.items() for step, value in enumerate(each, 1)])  # fmt: skip
    (table,) = section(page_of(tmp_path / "tb"), "Competition").tables
    assert table.rows == [["tb", "2 of 4", "3", "0.250", "0.750"]]


def test_a_limit_that_nobody_states_is_missing(tmp_path: Path) -> None:
    write_events(tmp_path / "tb", [scalar("competition/active-layers", 1.0, 1)])
    assert "A_max: neither recipe nor arguments say" in missing(page_of(tmp_path / "tb"))
    assert "A_max" not in missing(page_of(make_run(tmp_path / "run")))


@pytest.mark.parametrize("router", ["xmoe", None])
def test_a_run_without_competition_names_its_router(tmp_path: Path, router: str | None) -> None:
    run = make_run(tmp_path / "run", settings={"router": router} if router else {}, competing=False)
    assert (
        section(page_of(run), "Competition").text == f"No layer's competition was logged (router: {router or 'topk'})."
    )
