"""What the sections share: events as marks, notes of what is missing, one range of steps."""

from pathlib import Path

from megatron_compete.cluster.queue import Queue
from megatron_compete.report.run import RunReader, find_runs
from megatron_compete.report.sections.sheet import Sheet
from tests.report.made_runs import make_run, scalar, write_events


def sheet_of(*folders: Path) -> Sheet:
    return Sheet(RunReader(find_runs(folders)).read(Queue(False, {})))


def test_events_are_marks_of_a_single_run(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two")
    marks = sheet_of(one).marks()
    assert marks and all(mark.x is not None for mark in marks)
    assert sheet_of(one, two).marks() == []


def test_what_is_missing_names_the_runs_that_lack_it(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_events(tmp_path / name, [scalar("lm loss" if name == "one" else "other", 1.0, 1)])
    several, single = sheet_of(tmp_path / "one", tmp_path / "two"), sheet_of(tmp_path / "two")
    for sheet in (several, single):
        sheet.say_missing("The loss", sheet.curves("lm loss"), "not logged")
        sheet.say_missing("A thing", dict.fromkeys(run.name for run in sheet.runs))
    assert several.missing == ["The loss of two: not logged"]
    assert single.missing == ["The loss: not logged"]


def test_charts_move_together(tmp_path: Path) -> None:
    sheet = sheet_of(make_run(tmp_path / "run"))
    first, second = (sheet.chart(sheet.curves(tag), tag) for tag in ("lm loss", "grad-norm"))
    assert first.x_range is second.x_range
    assert {"lm loss", "grad-norm"} <= sheet.shown
