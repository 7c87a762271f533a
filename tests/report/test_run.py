"""Which folders are runs, and what is read of them."""

import os
from pathlib import Path

import pytest

from megatron_compete.cluster.queue import Queue
from megatron_compete.common.errors import CompeteError
from megatron_compete.report.run import Run, RunReader, find_runs, run_names, tensorboard_folder
from tests.report.made_runs import logged, make_run, scalar, text, write_events

UNKNOWN = Queue(known=False, jobs={})


def read(folder: Path) -> Run:
    (run,) = RunReader(find_runs([folder])).read(UNKNOWN)
    return run


def test_a_run_folder_tells_everything(tmp_path: Path) -> None:
    run = read(make_run(tmp_path / "run"))
    assert run.status is not None and run.status.state == "finished" and run.name == "run"
    assert [attempt.outcome for attempt in run.attempts] == ["failed", "finished"]
    assert [failure.message for failure in run.failures] == ["out of memory"]
    assert [iteration for iteration, _ in run.checkpoints] == [20]
    assert run.setting("seq-length") == "128" and run.number("compete-max-active-layers") == 2
    assert run.number("note") is None and run.setting("note") is None
    loss, logged_loss = run.curve("lm loss"), run.logged("loss")
    assert loss is not None and len(loss.steps) == 40 and logged_loss is not None and set(logged_loss.values) == {3.0}


def test_a_plain_tensorboard_folder_is_a_run(tmp_path: Path) -> None:
    write_events(tmp_path / "tb", [text("num_experts", "8"), *logged(3)])
    run = read(tmp_path / "tb")
    assert (
        run.status is None and run.setting("num-experts") == "8" and run.attempts == [] and run.logged("loss") is None
    )


def test_a_folder_with_tensorboard_below_is_a_run(tmp_path: Path) -> None:
    write_events(tmp_path / "run" / "tensorboard", logged(3))
    assert find_runs([tmp_path / "run"]) == [tmp_path / "run"] and len(read(tmp_path / "run").tags()) > 5


def test_event_files_are_where_the_recipe_says(tmp_path: Path) -> None:
    make_run(tmp_path / "run", settings={"tensorboard-dir": str(tmp_path / "elsewhere")})
    assert tensorboard_folder(tmp_path / "run") == tmp_path / "run" / "tensorboard"
    write_events(tmp_path / "elsewhere", logged(3))
    assert tensorboard_folder(tmp_path / "run") == tmp_path / "elsewhere"


def test_a_run_without_event_files_has_what_the_job_wrote(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    for path in (tmp_path / "run" / "tensorboard").iterdir():
        path.unlink()
    run = read(tmp_path / "run")
    assert run.events is None and run.tags() == [] and run.logged("loss") is not None


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CompeteError, match="is no run folder and holds no event files"):
            find_runs([path])


def test_a_chain_is_its_jobs_and_no_run_comes_twice(tmp_path: Path) -> None:
    first, second = (make_run(tmp_path / "chain" / name, steps=2) for name in ("1-a", "2-b"))
    assert find_runs([tmp_path / "chain", first]) == [first, second]


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    assert run_names([tmp_path / "a/x", tmp_path / "b/x"]) == ["a/x", "b/x"]
    assert run_names([tmp_path / "a/x", tmp_path / "b/y"]) == ["x", "y"]


def test_damaged_records_are_passed_over(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "failures" / "1-n1-0.json").write_text("{")
    (run / "failures" / "1-n1-1.json").write_text('{"attempt": 0, "host": 1, "rank": 0, "local_rank": 0, "exit_code": 1, "time": "x", "message": []}')  # fmt: skip
    (run / "steps.jsonl").write_text('{"iteration": "x"}\n[1]\n{"iteration": 1, "loss": null, "time": 5}\n{"iter')
    (run / "attempts.tsv").write_text("0\t41\n")
    (run / "recipe.yaml").write_text("arguments: [")
    found = read(run)
    assert len(found.failures) == 1 and found.attempts == [] and found.settings == {"seq-length": "128"}
    curve = found.logged("loss")
    assert curve is not None and curve.steps.tolist() == [1]


def test_another_version_once_a_file_grows(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    reader = RunReader([run])
    before = reader.version()
    assert reader.version() == before
    write_events(run / "tensorboard", [scalar("lm loss", 1.0, 41)], mode="ab")
    after = reader.version()
    assert after != before
    os.utime(run / "progress.json", (1, 1))
    assert reader.version() != after
