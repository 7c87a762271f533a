"""Starts, stops, failures and checkpoints, with their steps."""

from pathlib import Path

from megatron_compete.cluster.queue import Queue
from megatron_compete.report.run import RunReader
from megatron_compete.report.run_events import events_of, step_times
from tests.report.made_runs import BEGIN, logged, make_run, session, write_events


def test_events_of_a_job_stand_at_the_steps_of_their_times(tmp_path: Path) -> None:
    (run,) = RunReader([make_run(tmp_path / "run")]).read(Queue(False, {}))
    events = events_of(run)
    assert sorted((event.kind, event.step, event.time - BEGIN) for event in events) == [
        ("checkpoint", 20, 200), ("failure", 20, 200), ("start", 0, 0), ("start", 20, 200),
    ]  # fmt: skip
    assert "rank 3 on n2: ended by SIGKILL" in next(event.text for event in events if event.kind == "failure")


def test_without_a_job_sessions_are_starts(tmp_path: Path) -> None:
    write_events(tmp_path, [session(1), *logged(4)])
    write_events(tmp_path, [session(3), *list(logged(4))], number=1)
    (run,) = RunReader([tmp_path]).read(Queue(False, {}))
    assert [(event.kind, event.step) for event in events_of(run)] == [("start", 1), ("start", 3)]
    timed = step_times(run)
    assert timed is not None and timed.values.tolist() == [1, 2, 3, 4]


def test_a_stop_is_no_failure(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "attempts.tsv").write_text(f"0\t41\t{BEGIN}\t{BEGIN + 99}\tn1\tstopped\t75\t-\ttold to stop\n")
    (run,) = RunReader([folder]).read(Queue(False, {}))
    (stop,) = (event for event in events_of(run) if event.kind == "stop")
    assert (stop.step, stop.text) == (9, "attempt 0 stopped: told to stop")


def test_a_run_without_any_step_has_no_times(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "steps.jsonl").unlink()
    for path in (folder / "tensorboard").iterdir():
        path.unlink()
    (run,) = RunReader([folder]).read(Queue(False, {}))
    assert step_times(run) is None and {event.step for event in events_of(run)} == {None, 20}
