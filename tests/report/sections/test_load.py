"""Loads of experts, and who is dead since when."""

from pathlib import Path

from megatron_compete.report.page import render
from tests.report.made_pages import missing, page_of, section
from tests.report.made_runs import logged, make_run, write_events


def test_who_is_dead_since_when(tmp_path: Path) -> None:
    (table,) = section(page_of(make_run(tmp_path / "run")), "Load of the experts").tables
    assert table.rows == [[2, 3, "21", "3 at step 21"]]


def test_metrics_without_layers_say_which_flag_logs_them(tmp_path: Path) -> None:
    write_events(tmp_path / "tb", logged(5, per_layer=False))
    assert missing(page_of(tmp_path / "tb")).count("--moe-per-layer-logging") == 2


def test_200_layers_stay_a_small_page(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", steps=60, layers=200))
    assert len(render(page)) < 5_000_000
    assert len(section(page, "Load of the experts").figures) == 5
