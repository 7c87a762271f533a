"""What happened to a run, each with its time and, as far as the logged steps tell, its step."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from megatron_compete.report.event_files import Curve
from megatron_compete.report.run import Run


@dataclass(frozen=True)
class Event:
    """A start, a checkpoint, a stop or a failure."""

    time: float
    """Epoch seconds."""
    step: int | None
    kind: Literal["start", "checkpoint", "stop", "failure"]
    text: str


def step_times(run: Run) -> Curve | None:
    """When which step was logged: `values` are steps, ascending in time; a step that was trained again is there twice."""
    rows = [(step.get("time"), step.get("iteration")) for step in run.steps]
    known = [(float(t), int(i)) for t, i in rows if isinstance(t, int | float) and isinstance(i, int)]
    if known:
        times, steps = np.array([t for t, _ in known]), np.array([i for _, i in known], np.int64)
    else:
        curve = run.curve("lm loss")
        if curve is None:
            return None
        times, steps = curve.times, curve.steps
    order = np.argsort(times, kind="stable")
    return Curve(steps[order], steps[order].astype(np.float64), times[order])


def events_of(run: Run) -> list[Event]:
    """All of them in the order of their times."""
    timed = step_times(run)
    events = [
        Event(_time_of(timed, iteration, written), iteration, "checkpoint", f"checkpoint of step {iteration:,}")
        for iteration, written in run.checkpoints
    ]
    for attempt in run.attempts:
        events.append(Event(attempt.begin, _step_at(timed, attempt.begin), "start", f"attempt {attempt.number} on {attempt.nodes}"))  # fmt: skip
        if attempt.outcome != "finished":
            kind: Literal["stop", "failure"] = "stop" if attempt.outcome == "stopped" else "failure"
            text = f"attempt {attempt.number} {attempt.outcome}: {attempt.why or f'exit code {attempt.exit_code}'}"
            events.append(Event(attempt.end, _step_at(timed, attempt.end), kind, text))
    if not run.attempts and run.events is not None:
        sessions = run.events.sessions
        events += [Event(one.time, one.step, "start", f"the trainer began with step {one.step:,}") for one in sessions]
    return sorted((event for event in events if math.isfinite(event.time)), key=lambda event: event.time)


def _step_at(timed: Curve | None, time: float) -> int | None:
    """The step that was logged last before a time; 0 before the first."""
    if timed is None:
        return None
    before = int(np.searchsorted(timed.times, time, side="right"))
    return int(timed.steps[before - 1]) if before else 0


def _time_of(timed: Curve | None, iteration: int, otherwise: float) -> float:
    """When a step was logged last; the folder's own time where it was not, for a copied folder has another."""
    if timed is None:
        return otherwise
    places = np.flatnonzero(timed.steps == iteration)
    return float(timed.times[places[-1]]) if len(places) else otherwise
