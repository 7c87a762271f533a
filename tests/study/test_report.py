"""The report from raw logs alone."""

import csv
import re
from pathlib import Path

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.study.config import Study
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
    write_report(written_study(folder), folder)
    return folder


def written_study(folder: Path) -> Study:
    study = study_of(folder)
    write_logs(study, folder, cost={"slow": 2.0}, lead={"slow": 0.2, "paper": -0.1})
    return study


def table(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "table.csv").open(newline="") as stream:
        return {row["variant"]: row for row in csv.DictReader(stream)}


def test_the_same_logs_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_report(written_study(tmp_path), tmp_path)
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
    assert (rows["slow"]["seconds-ratio"], rows["paper"]["seconds-ratio"], rows["slow"]["steps-pairs"]) == (
        "2",
        "1",
        "3",
    )
    assert rows["slow"]["flops-difference"] == "" and rows["slow"]["data-difference"] == "-0.2"


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
    assert "the same in every pair" in text and "missing" not in text.split("## All variants")[0]


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


def test_the_first_line_is_what_the_setting_can_tell(folder: Path) -> None:
    lines = (folder / "report.md").read_text().splitlines()
    assert lines[2].startswith("**Headroom was not checked")
    body = (folder / "report.html").read_text().split("<main>")[1].strip().splitlines()
    assert body[0].startswith("<h1>") and body[1].startswith("<p><strong>Headroom was not checked")


def test_all_that_is_not_declared_is_exploratory(folder: Path) -> None:
    """Two variants, two axes: 4 intervals, of which the differences here are clear of 0 by what floats add up to."""
    text = (folder / "report.md").read_text()
    assert "No comparison is declared in the study's file (`comparisons`)" in text and "## Declared" not in text
    assert "Of 4 such intervals here, 0.2 would be expected to exclude 0" in text
    assert "hold no floating-point operations, so nothing is compared at equal FLOPs" in text
    assert "†: one of the two" in text  # Megatron's default is linear decay
    assert not (folder / "comparisons.csv").exists() and not (folder / "headroom.csv").exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With every section: `slow` costs 2 FLOPs a step, `long` trains twice as long, `dense` has no router, and the
    learning rate decays."""
    folder = tmp_path_factory.mktemp("whole")
    study = study_of(
        folder,
        arguments={"lr-decay-style": "cosine"},
        variants={"topk": {"label": "top-K"}, "hash": {}, "frozen": {}, "slow": {}, "long": {"steps": 80}, "dense": {}},
        headroom={"hash": "hash", "frozen": "frozen", "dense-gradient": "slow"},
        comparisons=[{"variant": "slow", "at": "flops"}, {"variant": "slow", "at": "data"}],
        **{"smallest-difference": 0.05},
    )
    router = ("load", "entropy", "margin", "coactivation", "choices", "choices_shape")
    without = {"dense": router, "hash": ("entropy", "margin")}
    lead = {"hash": -0.2, "frozen": -0.3, "slow": 0.1}
    write_logs(study, folder, cost={"slow": 2.0}, lead=lead, flops={"slow": 2.0, "dense": 0.5}, without=without)
    write_report(study, folder)
    return folder


def test_a_report_with_every_section(whole: Path) -> None:
    text = (whole / "report.md").read_text()
    order = ["can tell routers apart", "| arm | bounds |", "(headroom.png)", "## Declared comparisons", "## All variants", "## Router statistics", "## Figures"]  # fmt: skip
    places = [text.index(one) for one in order]
    assert places == sorted(places) and text.splitlines()[2].startswith(
        "**This setting can tell routers apart and has room"
    )
    assert "2 comparisons are declared in the study's file, and corrected for that number" in text
    assert "Beyond the declared comparisons and the headroom check all is exploratory" in text
    assert "†: one of the two was cut off while its learning rate still decayed" in text
    assert "| slow | -0.1000 [-0.1000, -0.1000] | +0.4000 [+0.4000, +0.4000] † | +0.4000" in text
    assert "| slow against top-K | FLOPs | 3 | +0.4000 [+0.4000, +0.4000] † |" in text
    assert "At equal steps, FLOPs and seconds a pair is compared" in text and "At equal data each run" in text
    assert "6 variants, 18 runs of 40 to 80 steps (4,000 to 8,000 tokens each)." in text
    assert {path.name for path in whole.glob("*.png")} == FIGURES | {"headroom.png", "loss-flops.png"}
    assert (whole / "comparisons.csv").is_file() and (whole / "headroom.csv").is_file()


def test_differences_on_all_axes(whole: Path) -> None:
    """After 20 of its 40 steps, which cost what top-K's 40 do, `slow` has .5 more to fall, less its lead of .1."""
    rows = table(whole)
    slow, long, dense = rows["slow"], rows["long"], rows["dense"]
    assert [float(slow[f"{axis}-difference"]) for axis in ("steps", "flops", "seconds", "data")] == pytest.approx([-0.1, 0.4, 0.4, -0.1])  # fmt: skip
    assert (slow["flops-cut-off"], dense["flops-cut-off"], long["steps-cut-off"], slow["data-cut-off"]) == ("slow", "topk", "long", "")  # fmt: skip
    assert (slow["flops-ratio"], slow["steps-ratio"], long["steps-ratio"], long["steps"]) == ("2", "1", "2", "80")
    # `long` falls by 1 over the study's 40 steps too: at its 40th it is where top-K ends, and 1 lower at its own end.
    assert float(long["steps-difference"]) == pytest.approx(0.0, abs=1e-9) and float(long["loss"]) == pytest.approx(
        2.02
    )
    assert float(long["data-difference"]) == pytest.approx(-1.0)
    assert float(dense["flops-difference"]) == pytest.approx(-0.5) and dense["flops-ratio"] == "0.5"


def test_a_variant_without_a_router_has_no_router_statistics(whole: Path) -> None:
    rows = table(whole)
    assert rows["dense"]["load-max"] == rows["dense"]["saturation"] == rows["hash"]["margin"] == ""
    assert float(rows["hash"]["load-max"]) > 1 and rows["hash"]["saturation"] != ""
    text = (whole / "report.md").read_text()
    assert "| dense |  |  |  |  |  |  |" in text


def test_a_run_that_diverged(tmp_path: Path) -> None:
    study = study_of(tmp_path, headroom={"hash": "slow"}, comparisons=[{"variant": "paper"}])
    write_logs(study, tmp_path)
    log = RunFolder(tmp_path / "runs/paper/seed-2").probe_log
    log.write_text(re.sub(r'("step": [234]0, "tokens": \d+, "loss": )[^,]+', r"\1NaN", log.read_text()))
    write_report(study, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| paper against top-K | steps | 3 | diverged |  | nan | diverged |" in text
    assert table(tmp_path)["paper"]["steps-difference"] == table(tmp_path)["paper"]["data-difference"] == "nan"


def test_one_seed_has_a_report(tmp_path: Path) -> None:
    study = study_of(tmp_path, seeds=[1], headroom={"hash": "slow", "frozen": "paper", "dense-gradient": "paper"})
    write_logs(study, tmp_path, lead={"slow": -0.2})
    write_report(study, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert text.splitlines()[2].startswith("**The headroom check is undecided")
    assert "+0.2000 (one pair)" in text and "Of 0 such intervals here, 0.0" in text


def test_what_a_report_no_longer_has_is_deleted(tmp_path: Path) -> None:
    study = study_of(tmp_path, comparisons=[{"variant": "paper"}], headroom={"hash": "slow"})
    write_logs(study, tmp_path)
    write_report(study, tmp_path)
    assert (tmp_path / "comparisons.csv").exists() and (tmp_path / "headroom.png").exists()
    write_report(study_of(tmp_path), tmp_path)
    assert not any((tmp_path / name).exists() for name in ("comparisons.csv", "headroom.csv", "headroom.png"))
