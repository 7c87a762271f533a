"""Recipes beside each other, and the scalars that nothing else shows."""

from pathlib import Path

from tests.report.made_pages import missing, page_of, section
from tests.report.made_runs import make_run, scalar, write_events


def test_several_runs_show_what_differs(tmp_path: Path) -> None:
    first, second = (make_run(tmp_path / name, settings={"lr": lr}) for name, lr in (("one", 0.1), ("two", 0.2)))
    (table,) = section(page_of(first, second), "Settings").tables
    assert (table.caption, table.rows) == ("What differs", [["lr", "0.1", "0.2"]])
    third = make_run(tmp_path / "three", settings={"lr": 0.1})
    assert section(page_of(first, third), "Settings").text == "No setting differs."


def test_a_run_without_settings_says_where_they_would_be(tmp_path: Path) -> None:
    write_events(tmp_path / "tb", [scalar("lm loss", 2.0, 1)])
    assert "Settings: neither a recipe nor arguments in TensorBoard" in missing(page_of(tmp_path / "tb"))


def test_scalars_that_no_chart_shows_are_a_table(tmp_path: Path) -> None:
    named = ("lm loss", "my-own", "my-own vs samples", "moe/my_own_layer_0")
    write_events(tmp_path / "tb", [scalar(tag, 2.0, step) for tag in named for step in (1, 2)])
    (table,) = section(page_of(tmp_path / "tb"), "Other scalars").tables
    assert table.rows == [["tb", "my-own", "2", "2", "2.0000"]]
