"""One schedule for the whole job: the same on all ranks, and the same after a resume.

Ranks never talk about the schedule while they train, so they must agree before they start. A checkpoint carries the
schedule's settings among the trainer's arguments (`args.compete_schedule`); a run that resumes from it continues that
table. The places of layers in the pipeline that a balanced schedule goes by are among the settings: after a change of
layout they stay those of the first run, so that the table, and with it the training, does not change. That the same
settings still draw the same table is a matter of numpy, so a checkpoint also carries a digest of what was drawn
(`args.compete_schedule_drawn`).
"""

import argparse
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from megatron.core.transformer.module import MegatronModule
from megatron.training.utils import print_rank_0

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig, flag_of
from megatron_compete.moe.competition import Competition
from megatron_compete.schedule import CompetitionSchedule
from megatron_compete.upstream import Replacement, wrap_symbol

OVERRIDE = "--compete-override-schedule"

FLAGS = {
    "num_layers": "layers that compete (--num-layers, --moe-layer-freq)",
    "rate": flag_of("rate"),
    "max_active": flag_of("max_active_layers"),
    "policy": flag_of("policy"),
    "places": "stage and chunk of each layer (pipeline layout)",
    "seed": flag_of("seed"),
    "warmup_steps": flag_of("warmup_steps"),
    "decay": flag_of("rate_decay"),
    "decay_steps": flag_of("rate_decay_steps"),
    "floor": flag_of("rate_floor"),
}
"""What a setting of the schedule is to the user."""

Settings = dict[str, Any]


def check_agreement(model: list[MegatronModule], competition: Competition) -> list[MegatronModule]:
    """Stop unless all ranks of the job draw the same table; a hook that Megatron calls when the model is built.

    Raises:
        CompeteError: on every rank, with the values that differ and the first rank that has each.
    """
    _say_capped(competition)
    _check_equal(competition)
    print_rank_0(f"megatron-compete: schedule {competition.schedule.describe()}")
    return model


def _check_equal(competition: Competition) -> None:
    if _all_equal(competition.schedule.digest()):
        return
    settings: list[Settings] = [{} for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(settings, competition.schedule.settings())
    raise CompeteError(f"the ranks of this job disagree on the competition schedule: {_disagreement(settings)}")


def _all_equal(digest: str) -> bool:
    """Whether all ranks have this digest: the largest and the smallest of each byte, in one reduction."""
    values = torch.tensor(list(bytes.fromhex(digest)), dtype=torch.int32)
    reduced = torch.cat((values, -values)).to(torch.cuda.current_device())
    torch.distributed.all_reduce(reduced, op=torch.distributed.ReduceOp.MAX)
    largest, smallest = reduced[: len(values)], -reduced[len(values) :]
    return bool((largest == smallest).all())


def _disagreement(settings: list[Settings]) -> str:
    differing = []
    for name, flag in FLAGS.items():
        first_rank: dict[str, int] = {}
        for rank, one in enumerate(settings):
            first_rank.setdefault(str(one[name]), rank)
        if len(first_rank) > 1:
            values = ", ".join(f"{value} on rank {rank}" for value, rank in first_rank.items())
            differing.append(f"{flag} is {values}")
    if not differing:
        return "the settings are the same, so its random numbers are not: install one version of numpy on all nodes"
    return "; ".join(differing) + ". Start all ranks with the same arguments"


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
    args.compete_schedule = schedule.settings()
    args.compete_schedule_drawn = {"digest": schedule.drawn(), "numpy": np.__version__}


class _Comparison:
    """Of this run's schedule with a checkpoint's, around Megatron's `check_checkpoint_args`."""

    def __init__(self, competition: Competition, args: argparse.Namespace) -> None:
        self.competition, self.args = competition, args

    def check(
        self, upstream: Callable[..., None], checkpoint_args: argparse.Namespace, *rest: Any, **named: Any
    ) -> None:
        """Megatron's check, then the schedule's."""
        upstream(checkpoint_args, *rest, **named)
        saved = getattr(checkpoint_args, "compete_schedule", None)
        if saved is None:
            return  # a run without competition, or another trainer's: its competition begins here
        if getattr(self.args, "compete_override_schedule", False):
            changes = _changes(saved, self.competition.schedule.settings(), FLAGS)
            if changes:
                print_rank_0(f"megatron-compete: {OVERRIDE}: {changes}")
            return
        settings = continued(saved, self.competition.schedule.settings(), self.competition.config)
        kept = _changes(self.competition.schedule.settings(), settings, FLAGS)
        if kept:
            print_rank_0(f"megatron-compete: the checkpoint's competition schedule goes on: {kept}")
        self.competition.follow(settings)
        check_drawn(getattr(checkpoint_args, "compete_schedule_drawn", None), self.competition.schedule)
        _write_down(self.competition.schedule, self.args)
        _check_equal(self.competition)


def check_drawn(saved: dict[str, str] | None, schedule: CompetitionSchedule) -> None:
    """Stop unless these settings draw here what they drew when the checkpoint was written.

    Args:
        saved: the checkpoint's digest and its numpy; None in those of before.
    Raises:
        CompeteError: another table is drawn.
    """
    if saved is None:
        print_rank_0(
            "megatron-compete: the checkpoint holds no digest of its schedule: its table is taken as unchanged"
        )
    elif saved["digest"] != schedule.drawn():
        raise CompeteError(
            f"the checkpoint's competition schedule was drawn by numpy {saved['numpy']}, and numpy {np.__version__} draws "
            f"another table from its settings: install the checkpoint's numpy, or {OVERRIDE} to go on with this one"
        )


def continued(saved: Settings, now: Settings, config: CompeteConfig) -> Settings:
    """The settings with which a schedule goes on in a resumed run: the saved ones.

    The policy, where it was left to `auto`, and the places follow from the pipeline layout, which may change; all
    others are the user's and may not.

    Args:
        saved, now: `CompetitionSchedule.settings` of the checkpoint and of this run's arguments.
    Raises:
        CompeteError: another value is asked for than the checkpoint's.
    """
    derived = {"places"} | ({"policy"} if config.policy == "auto" else set())
    changes = _changes(saved, now, FLAGS.keys() - derived)
    if changes:
        raise CompeteError(
            f"the checkpoint's competition schedule is another: {changes}. Give the checkpoint's values, or "
            f"{OVERRIDE} to go on with the new ones"
        )
    return saved


def _changes(before: Settings, after: Settings, names: Iterable[str]) -> str:
    wanted = set(names)
    return ", ".join(
        f"{flag} {before.get(name)} -> {after.get(name)}"
        for name, flag in FLAGS.items()
        if name in wanted and before.get(name) != after.get(name)
    )


def _say_capped(competition: Competition) -> None:
    config, rate = competition.config, competition.schedule.rate
    if rate < config.rate:
        print_rank_0(
            f"megatron-compete: {flag_of('rate')} {config.rate:g} of {len(competition.layer_numbers)} layers is more "
            f"than {flag_of('max_active_layers')} {config.max_active_layers} allows: they compete at {rate:g}"
        )
