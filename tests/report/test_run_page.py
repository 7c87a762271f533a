"""What a run's page shows, and what it says is missing."""

from pathlib import Path

import pytest

from megatron_compete.report.page import render
from tests.report.made_pages import missing, page_of, section, titles
from tests.report.made_runs import EVIL, logged, make_run, scalar, text, write_events


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


def test_a_truncated_event_file_is_said(tmp_path: Path) -> None:
    path = write_events(tmp_path / "tb", logged(5))
    path.write_bytes(path.read_bytes()[:-5])
    assert "no whole record: it was cut off, or is being written" in missing(page_of(tmp_path / "tb"))


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
