"""What a run's page shows, and what it says is missing."""

import math
from pathlib import Path

import pytest

from megatron_compete.cluster.queue import Queue
from megatron_compete.report.page import Page, Section, render
from megatron_compete.report.run import RunReader, find_runs
from megatron_compete.report.run_page import run_page
from tests.report.made_runs import EVIL, logged, make_run, scalar, text, write_events


def page_of(*folders: Path, **more) -> Page:
    return run_page(RunReader(find_runs(folders)).read(Queue(False, {})), **more)


def section(page: Page, title: str) -> Section:
    return next(section for section in page.sections if section.title == title)


def missing(page: Page) -> str:
    found = [one for one in page.sections if one.title == "What is missing"]
    return "\n".join(str(row[0]) for one in found for row in one.tables[0].rows)


def titles(page: Page) -> list[str]:
    return [figure.title.text for one in page.sections for figure in one.figures]


def test_a_run_has_all_its_sections(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run"))
    assert [section.title for section in page.sections] == [
        "Loss", "What is missing", "Speed", "Optimiser", "Competition", "Load of the experts", "The router's losses",
        "Attempts, stops, failures, checkpoints", "Settings",
    ]  # fmt: skip
    assert missing(page) == "TFLOP/s: Megatron logs them with --log-throughput and --log-timers-to-tensorboard"
    shown = titles(page)
    for title in ("Training loss", "Held-out loss", "Throughput", "Time of a step", "Learning-rate", "Competing layers", "Dead experts", "Progress"):  # fmt: skip
        assert title in shown or title.replace("-", " ") in shown, title
    facts = dict(page.summary)
    assert facts["state"] == "finished" and facts["step"] == "40 of 40" and facts["tokens/s"] == "2,048"
    assert facts["restarts"] == "1, 1 after a failure" and facts["last checkpoint"] == "20"


def test_who_is_dead_since_when(tmp_path: Path) -> None:
    (table,) = section(page_of(make_run(tmp_path / "run")), "Load of the experts").tables
    assert table.rows == [[2, 3, "21", "3 at step 21"]]


def test_attempts_failures_and_all_that_happened_are_tables(tmp_path: Path) -> None:
    tables = {t.caption: t for t in section(page_of(make_run(tmp_path / "run")), "Attempts, stops, failures, checkpoints").tables}  # fmt: skip
    assert [row[4] for row in tables["Attempts"].rows] == ["failed", "finished"]
    assert tables["Failed ranks"].rows[0][-1] == "out of memory" and len(tables["In order"].rows) == 4


def test_a_share_of_the_peak_needs_the_peak(tmp_path: Path) -> None:
    write_events(tmp_path / "tb", [scalar("throughput", 250.0, step) for step in (1, 2)])
    page = page_of(tmp_path / "tb")
    assert "MFU: --peak-tflops" in missing(page) and "Operations per second" in titles(page)
    page = page_of(tmp_path / "tb", peak_tflops=1000)
    (figure,) = section(page, "Speed").figures
    assert "MFU" in figure.title.text and figure.renderers[0].data_source.data["y"].tolist() == [25, 25]


def test_runs_lie_over_each_other_and_say_what_differs(tmp_path: Path) -> None:
    first = make_run(tmp_path / "one", settings={"lr": 0.1})
    second = make_run(tmp_path / "two", settings={"lr": 0.2, "bf16": True}, seed=1, competing=False)
    page = page_of(first, second)
    (table,) = section(page, "Settings").tables
    assert table.caption == "What differs" and list(table.header) == ["setting", "one", "two"]
    assert table.rows == [["bf16", "-", "True"], ["lr", "0.1", "0.2"]]
    loss = section(page, "Loss").figures[0]
    assert [item.label.value for item in loss.legend[0].items] == ["one", "two"]
    assert [name for name, _ in page.summary] == ["one", "two"]
    assert page.summary[0][1].startswith("finished, step 40 of 40, loss ")
    assert (
        section(page_of(first, make_run(tmp_path / "three", settings={"lr": 0.1})), "Settings").text
        == "No setting differs."
    )


def test_a_stock_top_k_run_has_its_page(tmp_path: Path) -> None:
    write_events(tmp_path / "tb", [text("num_experts", "8"), *(scalar(tag, 1.0, step) for step in (1, 2) for tag in ("lm loss", "grad-norm", "load_balancing_loss", "moe/load_balancing_loss_layer_1"))])  # fmt: skip
    page = page_of(tmp_path / "tb")
    assert "No layer's competition was logged" in section(page, "Competition").text
    assert "Loads of the experts" in missing(page) and "Attempts, stops and failures" in missing(page)
    assert len(section(page, "The router's losses").figures) == 2
    assert section(page, "Settings").tables[0].rows == [["num-experts", "8"]]


def test_a_run_without_tensorboard_says_so(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    for path in (folder / "tensorboard").iterdir():
        path.unlink()
    page = page_of(folder)
    assert missing(page).startswith("TensorBoard's scalars of run: it has no event files")
    assert "Training loss" in titles(page) and "Throughput" in titles(page), "from steps.jsonl"
    render(page)


def test_a_run_that_has_logged_nothing_yet(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("arguments:\n  num-layers: 4\n")
    page = page_of(tmp_path / "run")
    assert "The loss: no step was logged yet" in missing(page)
    render(page)


def test_a_loss_that_is_nan_is_said_and_drawn_as_a_gap(tmp_path: Path) -> None:
    write_events(tmp_path / "tb", [scalar("lm loss", math.nan if 3 <= step < 6 else 2.0, step) for step in range(1, 9)])
    page = page_of(tmp_path / "tb")
    assert dict(page.summary)["loss not finite"] == "at 3 logged steps, first 3"
    names = [renderer.data_source.name for renderer in section(page, "Loss").figures[0].renderers]
    assert any(name.endswith("not finite") for name in names)
    write_events(tmp_path / "nan", [scalar("lm loss", math.nan, step) for step in range(1, 9)])
    assert dict(page_of(tmp_path / "nan").summary)["loss"] == "nan"
    render(page_of(tmp_path / "nan"))


def test_a_truncated_event_file_is_said(tmp_path: Path) -> None:
    path = write_events(tmp_path / "tb", logged(5))
    path.write_bytes(path.read_bytes()[:-5])
    assert "no whole record: it was cut off, or is being written" in missing(page_of(tmp_path / "tb"))


def test_metrics_without_layers_say_which_flag_logs_them(tmp_path: Path) -> None:
    write_events(tmp_path / "tb", logged(5, per_layer=False))
    assert missing(page_of(tmp_path / "tb")).count("--moe-per-layer-logging") == 2


def test_texts_of_a_run_cannot_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r<b>", settings={"note": EVIL, EVIL: 1})
    with open(folder / "attempts.tsv", "a") as file:
        file.write(f"2\t41\t1760000000\t1760000100\t{EVIL}\tfailed\t1\t-\t{EVIL}\n")
    write_events(folder / "tensorboard", [scalar(EVIL, 1.0, 1), scalar(f"moe/{EVIL}_layer_0", 1.0, 1), text(EVIL, EVIL)], number=1)  # fmt: skip
    html = render(page_of(folder))
    assert "<img" not in html and html.count("<script") == 3 + 0 and "<b>" not in html.split("</title>")[0].split("<title>")[1]  # fmt: skip


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_of_next_to_no_steps(tmp_path: Path, steps: int) -> None:
    render(page_of(make_run(tmp_path / "run", steps=steps)))


def test_200_layers_stay_a_small_page(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", steps=60, layers=200))
    assert len(render(page)) < 5_000_000
    assert len(section(page, "Load of the experts").figures) == 5
