"""The competition's schedule in the checkpoints of Megatron's trainer.

They carry the schedule's state (`trainers/same_schedule.py`) among the trainer's arguments: its settings in
`args.compete_schedule`, the digest of its table in `args.compete_schedule_drawn`.
"""

import argparse
from collections.abc import Callable
from typing import Any

from megatron_compete.moe.competition import Competition
from megatron_compete.schedule import CompetitionSchedule
from megatron_compete.trainers.same_schedule import follow_saved, schedule_state
from megatron_compete.upstream import Replacement, wrap_symbol


def keep_schedule(competition: Competition, args: argparse.Namespace) -> Replacement:
    """Save the schedule's settings with every checkpoint, and on loading one continue or refuse its schedule.

    Megatron compares a checkpoint's arguments with the running ones in `check_checkpoint_args`, for every checkpoint
    format and not under --finetune; the schedules are compared there, too.

    Returns:
        What ends it; without it, it lasts as long as the process.
    """
    _write_down(competition.schedule, args)
    comparison = _Comparison(competition, args)
    return wrap_symbol("megatron.training.checkpointing:check_checkpoint_args", comparison.check)


def _write_down(schedule: CompetitionSchedule, args: argparse.Namespace) -> None:
    """Put what a checkpoint keeps of the schedule among the trainer's arguments."""
    state = schedule_state(schedule)
    args.compete_schedule, args.compete_schedule_drawn = state["settings"], state["drawn"]


class _Comparison:
    """Of this run's schedule with a checkpoint's, around Megatron's `check_checkpoint_args`."""

    def __init__(self, competition: Competition, args: argparse.Namespace) -> None:
        self.competition, self.args = competition, args

    def check(
        self, upstream: Callable[..., None], checkpoint_args: argparse.Namespace, *rest: Any, **named: Any
    ) -> None:
        """Megatron's check, then the schedule's."""
        upstream(checkpoint_args, *rest, **named)
        settings = getattr(checkpoint_args, "compete_schedule", None)
        if settings is None:
            return  # a run without competition, or another trainer's: its competition begins here
        saved = {"settings": settings, "drawn": getattr(checkpoint_args, "compete_schedule_drawn", None)}
        follow_saved(self.competition, saved, getattr(self.args, "compete_override_schedule", False))
        _write_down(self.competition.schedule, self.args)
