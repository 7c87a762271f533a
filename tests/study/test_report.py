"""The report from raw logs alone."""

import csv
import re
from pathlib import Path

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.study.folder import RunFolder
from megatron_compete.study.logs import read_logs, routing_metrics
from megatron_compete.study.report import write_report
from megatron_compete.study.table import rows_of
from tests.study.fabricated import EXPERTS, LAYERS, study_of, write_logs

FIGURES = {"differences.png", "gaps.png", "loss-steps.png", "loss-seconds.png", "agreement.png", "load.png", "router-statistics.png", "experts.png"}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with its report; the slow variant takes twice the time and ends .2 lower."""
    folder = tmp_path_factory.mktemp("study")
    study = study_of(folder)
    write_logs(study, folder, cost={"slow": 2.0}, lead={"slow": 0.2, "paper": -0.1})
    write_report(study, folder)
    return folder


def table(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "table.csv").open(newline="") as stream:
        return {row["variant"]: row for row in csv.DictReader(stream)}


def test_the_same_logs_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    other = study_of(tmp_path)
    write_logs(other, tmp_path, cost={"slow": 2.0}, lead={"slow": 0.2, "paper": -0.1})
    write_report(other, tmp_path)
    written = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != "study.yaml")
    assert FIGURES | {"table.csv", "table.md", "curves.csv", "report.md", "report.html"} == set(written)
    for name in written:
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_differences_at_equal_steps_and_at_equal_seconds(folder: Path) -> None:
    """Losses fall by 1 over 40 steps; the baseline is done when `slow` is half-way, which costs it .5."""
    rows = table(folder)
    assert rows["topk"]["steps-difference"] == ""
    assert float(rows["topk"]["loss"]) == pytest.approx(3.02) and rows["topk"]["loss-sd"] == "0.01"
    assert float(rows["paper"]["steps-difference"]) == pytest.approx(0.1)
    assert float(rows["paper"]["seconds-difference"]) == pytest.approx(0.1)
    assert float(rows["slow"]["steps-difference"]) == pytest.approx(-0.2)
    assert float(rows["slow"]["seconds-difference"]) == pytest.approx(0.3)
    assert (rows["slow"]["cost"], rows["paper"]["cost"], rows["slow"]["steps-pairs"]) == ("2", "1", "3")


def test_the_page_needs_no_other_file(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == len(FIGURES)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "A &lt;study&gt; of nothing" in page and "<table>" in page


def test_the_markdown_names_every_variant_and_figure(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    assert all(f"({name})" in text for name in FIGURES)
    for label in ("top-K", "paper", "slow"):
        assert f"| {label} | 3 |" in text
    assert "the same in every pair" in text and "missing" not in text.split("## Loss")[0]


def test_missing_runs_scalars_and_unlike_starts(folder: Path, tmp_path: Path) -> None:
    """Runs shorter than `tensorboard-log-interval` log no agreement."""
    study = study_of(tmp_path)
    write_logs(study, tmp_path)
    for scalars in tmp_path.glob("runs/*/*/scalars.csv"):
        scalars.write_text("scalar,step,mean,values\n")
    (tmp_path / "runs/slow/seed-2/finished.json").unlink()
    log = RunFolder(tmp_path / "runs/paper/seed-3").probe_log
    log.write_text(log.read_text().replace('"w3"', '"other"'))
    write_report(study, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "1 of the 9 planned runs are missing" in text
    assert "differ from the baseline's in paper/seed-3." in text
    assert table(tmp_path)["slow"]["steps-pairs"] == "2" and table(tmp_path)["slow"]["agreement"] == ""
    assert (
        "agreement.png" not in text and not (tmp_path / "agreement.png").exists() and "(router-statistics.png)" in text
    )


def test_a_study_without_its_baseline_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(CompeteError, match="has no finished runs of topk"):
        write_report(study_of(tmp_path), tmp_path)


def test_metrics_of_a_probe(folder: Path) -> None:
    logs = read_logs(study_of(folder / "again"), folder)
    run = logs["paper"][0]
    assert run.metrics["saturation"][40] == 1.0 and 0.0 < run.metrics["saturation"][0] < 0.7
    assert sorted(run.metrics["change-rate"]) == [10, 20, 30, 40]
    assert run.metrics["agreement"] == {step: pytest.approx(0.5 + step / 1e4) for step in (10, 20, 30, 40)}
    assert run.load_LE.shape == (LAYERS, EXPERTS) and run.load_LE.mean() == pytest.approx(1.0)
    assert run.metrics["load-max"][40] == pytest.approx(run.load_LE.max())
    assert "agreement" not in logs["topk"][0].metrics
    assert [row.variant for row in rows_of(study_of(folder / "again"), logs)] == ["topk", "paper", "slow"]


def test_change_rate_and_saturation_of_known_choices() -> None:
    import torch

    from megatron_compete.routing.router_statistics import pack_choices

    maps = [torch.tensor([[[1, 1, 0, 0]]]), torch.tensor([[[1, 0, 1, 0]]]), torch.tensor([[[0, 0, 1, 1]]])]
    lines = [
        {"step": step, "load": [[1, 1, 1, 1]], "entropy": [0], "margin": [0], "coactivation": [0],
         "choices": pack_choices(one.bool()), "choices_shape": [1, 1, 4]}
        for step, one in enumerate(maps)
    ]  # fmt: skip
    metrics = routing_metrics(lines)
    assert metrics["change-rate"] == {1: 0.5, 2: 0.5}
    assert metrics["saturation"] == {0: 0.0, 1: 0.5, 2: 1.0}
