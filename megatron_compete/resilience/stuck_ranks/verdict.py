"""Who is stuck: a verdict from what the ranks report of themselves. Pure functions; `watchdog.py` asks the ranks."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any

WAITING_FILES = ("torch/distributed/", "torch/cuda/", "megatron/core/pipeline_parallel/p2p_communication.py", "megatron_compete/resilience/agreement.py")  # fmt: skip
"""Innermost frame of a rank that waits for others: in a collective, for the device that is in one, or for rank 0's word."""

SAVING = frozenset({"save_checkpoint", "maybe_finalize_async_save", "load_checkpoint"})
EVALUATING = frozenset({"evaluate"})
STEP = frozenset({"train_step", "dummy_train_step"})

Frame = tuple[str, int, str]
"""File, line, function."""


@dataclass(frozen=True)
class Report:
    """What a rank says of itself when asked."""

    rank: int
    host: str
    iteration: int
    """The step it is in, from 1."""
    microbatches: int
    """Those that it began since the start, evaluation included."""
    silent_seconds: float
    """Since it began the last one."""
    phase: str
    stack: tuple[Frame, ...]
    """Its main thread's, outermost first."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Report":
        """From `to_json`'s, after a journey as text."""
        return cls(**{**values, "stack": tuple(tuple(frame) for frame in values["stack"])})

    def to_json(self) -> dict[str, Any]:
        """As a dictionary of plain values."""
        return asdict(self)

    @property
    def where(self) -> str:
        """The innermost function, shortly."""
        if not self.stack:
            return "an unknown place"
        path, line, function = self.stack[-1]
        return f"{function} ({'/'.join(path.split('/')[-2:])}:{line})"

    @property
    def is_waiting(self) -> bool:
        """Whether its main thread waits in torch's communication, or for the device."""
        return bool(self.stack) and any(part in self.stack[-1][0] for part in WAITING_FILES)


@dataclass(frozen=True)
class Verdict:
    """Which rank to blame and why; rank None: none more than another."""

    rank: int | None
    host: str | None
    reason: str

    def describe(self) -> str:
        """One line for the log and the failure record."""
        if self.rank is None:
            return f"the job is stuck: {self.reason}"
        host = f" on host {self.host}" if self.host else ""
        return f"rank {self.rank}{host} is stuck: {self.reason}"


def stack_of(frame: FrameType | None) -> tuple[Frame, ...]:
    """Frames from the outermost to `frame`."""
    frames = []
    while frame is not None:
        frames.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return tuple(reversed(frames))


def phase_of(stack: Sequence[Frame]) -> str:
    """What Megatron's trainer is at, by the functions that are being run."""
    functions = {function for _, _, function in stack}
    for phase, names in (("saving", SAVING), ("evaluating", EVALUATING), ("training", STEP)):
        if functions & names:
            return phase
    return "between steps"


def judge(reports: Sequence[Report], world_size: int, hosts: dict[int, str]) -> Verdict:
    """Blame a rank, in this order: it gives no answer; it is behind; it does not wait while others do.

    Args:
        reports: of the ranks that answered.
        hosts: of all ranks, as far as known.
    """
    silent = sorted(set(range(world_size)) - {report.rank for report in reports})
    if silent:
        return _no_answer(silent, reports, hosts)
    least, most = min(report.microbatches for report in reports), max(report.microbatches for report in reports)
    busy = [report for report in reports if not report.is_waiting]
    if 0 < len(busy) < len(reports):
        first = min(busy, key=lambda report: (report.microbatches, report.rank))
        return Verdict(first.rank, first.host, f"{_state(first)}, while {len(reports) - len(busy)} other ranks wait{_also(busy, first)}")  # fmt: skip
    behind = [report for report in reports if report.microbatches == least]
    if least < most and len(behind) <= len(reports) // 2:
        first = behind[0]
        return Verdict(first.rank, first.host, f"{_state(first)}, {most - least} microbatches behind others{_also(behind, first)}")  # fmt: skip
    places = Counter(report.where for report in reports).most_common(3)
    listed = ", ".join(f"{count} ranks in {where}" for where, count in places)
    what = (
        "all ranks wait for each other (a network that fails, or ranks that disagree)" if not busy else "no rank waits"
    )
    return Verdict(None, None, f"{what}: {listed}")


def _no_answer(silent: list[int], reports: Sequence[Report], hosts: dict[int, str]) -> Verdict:
    others = f"; nor do ranks {', '.join(map(str, silent[1:5]))}{' ...' if len(silent) > 5 else ''}" * (len(silent) > 1)
    latest = max((report.iteration for report in reports), default=0)
    return Verdict(silent[0], hosts.get(silent[0]), f"it does not answer (its process is stopped, or its host is gone){others}; "
                   f"{len(reports)} ranks wait at iteration {latest}")  # fmt: skip


def _state(report: Report) -> str:
    return f"{report.phase} at iteration {report.iteration} for {report.silent_seconds:.0f} s in {report.where}"


def _also(blamed: Sequence[Report], first: Report) -> str:
    ranks = sorted(report.rank for report in blamed if report.rank != first.rank)
    return f"; so are ranks {', '.join(map(str, ranks[:4]))}{' ...' if len(ranks) > 4 else ''}" if ranks else ""
