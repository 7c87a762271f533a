"""The results that ship: their tables follow from the raw logs beside them."""

import csv
from pathlib import Path

import pytest

from megatron_compete.study.config import read_study
from megatron_compete.study.report import read_results
from megatron_compete.study.table import markdown_table, write_csv

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = sorted((ROOT / "benchmarks" / "studies").glob("*/table.csv"))


def test_a_study_is_published() -> None:
    assert [path.parent.name for path in PUBLISHED] == ["tiny"]


@pytest.mark.parametrize("table", PUBLISHED, ids=lambda path: path.parent.name)
def test_tables_follow_from_the_raw_logs(table: Path, tmp_path: Path) -> None:
    study = read_study(ROOT / "examples" / "studies" / f"{table.parent.name}.yaml")
    _, rows, _ = read_results(study, table.parent)
    assert markdown_table(rows) == (table.parent / "table.md").read_text()
    write_csv(rows, tmp_path / "table.csv")
    with table.open() as stream, (tmp_path / "table.csv").open() as again:
        assert list(csv.reader(stream)) == list(csv.reader(again))


@pytest.mark.parametrize("table", PUBLISHED, ids=lambda path: path.parent.name)
def test_every_planned_run_is_there(table: Path) -> None:
    study = read_study(ROOT / "examples" / "studies" / f"{table.parent.name}.yaml")
    logs, _, _ = read_results(study, table.parent)
    assert {name: [run.seed for run in runs] for name, runs in logs.items()} == {
        name: list(study.seeds_of(name)) for name in study.variants
    }
    assert all(run.weights for runs in logs.values() for run in runs)
