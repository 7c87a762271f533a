"""The results that ship: their tables follow from the raw logs beside them."""

from pathlib import Path

import pytest

from megatron_compete.study.config import read_study
from megatron_compete.study.figures import captions
from megatron_compete.study.report import markdown_report, read_results, write_tables

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "studies"
PUBLISHED = sorted(path.parent for path in (ROOT / "benchmarks" / "studies").glob("*/runs"))
TABLES = ("table.csv", "table.md", "headroom.csv", "comparisons.csv")


def test_every_published_study_can_be_run_again() -> None:
    assert "tiny" in [folder.name for folder in PUBLISHED]
    assert [folder.name for folder in PUBLISHED if not (EXAMPLES / f"{folder.name}.yaml").is_file()] == []


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda path: path.name)
def test_tables_and_words_follow_from_the_raw_logs(folder: Path, tmp_path: Path) -> None:
    study = read_study(EXAMPLES / f"{folder.name}.yaml")
    results = read_results(study, folder)
    write_tables(study, results, tmp_path)
    for name in TABLES:
        assert (tmp_path / name).is_file() == (folder / name).is_file(), name
        if (folder / name).is_file():
            assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name
    figures = {name: caption for name, caption in captions(study).items() if (folder / name).is_file()}
    assert markdown_report(study, results, figures) == (folder / "report.md").read_text()


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda path: path.name)
def test_every_planned_run_is_there(folder: Path) -> None:
    study = read_study(EXAMPLES / f"{folder.name}.yaml")
    logs = read_results(study, folder).logs
    assert {name: [run.seed for run in runs] for name, runs in logs.items()} == {
        name: list(study.seeds_of(name)) for name in study.variants
    }
    assert all(run.weights for runs in logs.values() for run in runs)
