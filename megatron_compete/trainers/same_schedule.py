"""One schedule for the whole job: the same on all ranks, and the same after a resume.

Ranks never talk about the schedule while they train, so they must agree before they start. A checkpoint carries what
`schedule_state` says; a run that resumes from it continues that table. The places of layers in the pipeline that a
balanced schedule goes by are among the settings: after a change of layout they stay those of the first run, so that the
table, and with it the training, does not change. That the same settings still draw the same table is a matter of numpy,
so the state also has a digest of what was drawn.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig, flag_of
from megatron_compete.moe.competition import Competition
from megatron_compete.schedule import CompetitionSchedule

OVERRIDE = "--compete-override-schedule"

FLAGS = {
    "num_layers": "layers that compete (--num-layers, --moe-layer-freq, --experts-in)",
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


def say(text: str) -> None:
    """Print a line, on rank 0 alone."""
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        print(f"megatron-compete: {text}", flush=True)


def schedule_state(schedule: CompetitionSchedule) -> dict[str, Any]:
    """What a checkpoint keeps of a schedule, as plain values: its `settings`, and under `drawn` a digest of its table with
    the numpy that drew it."""
    return {"settings": schedule.settings(), "drawn": {"digest": schedule.drawn(), "numpy": np.__version__}}


def check_agreement(competition: Competition) -> None:
    """Stop unless all ranks of the job draw the same table; without torch.distributed there is one.

    Raises:
        CompeteError: on every rank, with the values that differ and the first rank that has each.
    """
    if not torch.distributed.is_initialized() or _all_equal(competition.schedule.digest()):
        return
    settings: list[Settings] = [{} for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(settings, competition.schedule.settings())
    raise CompeteError(f"the ranks of this job disagree on the competition schedule: {_disagreement(settings)}")


def _all_equal(digest: str) -> bool:
    """Whether all ranks have this digest: the largest and the smallest of each byte, in one reduction."""
    values = torch.tensor(list(bytes.fromhex(digest)), dtype=torch.int32)
    reduced = torch.cat((values, -values)).to(communication_device())
    torch.distributed.all_reduce(reduced, op=torch.distributed.ReduceOp.MAX)
    largest, smallest = reduced[: len(values)], -reduced[len(values) :]
    return bool((largest == smallest).all())


def communication_device() -> torch.device:
    """Where a tensor must be for all ranks to reduce it."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


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


def follow_saved(competition: Competition, saved: dict[str, Any], override: bool = False) -> None:
    """Continue a checkpoint's schedule; a collective of all ranks.

    Args:
        saved: its `schedule_state`; `drawn` may be missing.
        override: keep this run's schedule, and say where it differs.
    Raises:
        CompeteError: this run asks for another schedule, or its numpy draws another table.
    """
    settings, now = saved["settings"], competition.schedule.settings()
    if override:
        differences = changes(settings, now)
        if differences:
            say(f"{OVERRIDE}: {differences}")
        return
    settings = continued(settings, now, competition.config)
    kept = changes(now, settings)
    if kept:
        say(f"the checkpoint's competition schedule goes on: {kept}")
    competition.follow(settings)
    check_drawn(saved.get("drawn"), competition.schedule)
    check_agreement(competition)


def check_drawn(saved: dict[str, str] | None, schedule: CompetitionSchedule) -> None:
    """Stop unless these settings draw here what they drew when the checkpoint was written.

    Args:
        saved: the checkpoint's digest and its numpy; None in those of before.
    Raises:
        CompeteError: another table is drawn.
    """
    if saved is None:
        say("the checkpoint holds no digest of its schedule: its table is taken as unchanged")
    elif saved["digest"] != schedule.drawn():
        raise CompeteError(
            f"the checkpoint's competition schedule was drawn by numpy {saved['numpy']}, and numpy {np.__version__} draws "
            f"another table from its settings: install the checkpoint's numpy, or {OVERRIDE} to go on with this one"
        )


def continued(saved: Settings, now: Settings, config: CompeteConfig) -> Settings:
    """The settings with which a schedule goes on in a resumed run: the saved ones.

    The policy, where it was left to `auto`, and the places follow from the pipeline layout, which may change, and a warm-up
    that is a fraction of the steps from their number, which may change too; all others are the user's and may not.

    Args:
        saved, now: `CompetitionSchedule.settings` of the checkpoint and of this run's arguments.
    Raises:
        CompeteError: another value is asked for than the checkpoint's.
    """
    derived = {"places"} | ({"policy"} if config.policy == "auto" else set())
    derived |= {"warmup_steps"} if config.warmup_fraction else set()
    differences = changes(saved, now, FLAGS.keys() - derived)
    if differences:
        raise CompeteError(
            f"the checkpoint's competition schedule is another: {differences}. Give the checkpoint's values, or "
            f"{OVERRIDE} to go on with the new ones"
        )
    return saved


def changes(before: Settings, after: Settings, names: Iterable[str] = FLAGS) -> str:
    """The settings that differ, by their flags; empty where none does."""
    wanted = set(names)
    return ", ".join(
        f"{flag} {before.get(name)} -> {after.get(name)}"
        for name, flag in FLAGS.items()
        if name in wanted and before.get(name) != after.get(name)
    )


def say_capped(competition: Competition) -> None:
    """Say where `--compete-cap-rate` lowered the rate."""
    config, rate = competition.config, competition.schedule.rate
    if rate < config.rate:
        say(
            f"{flag_of('rate')} {config.rate:g} of {len(competition.layer_numbers)} layers is more than "
            f"{flag_of('max_active_layers')} {competition.schedule.max_active} allows: they compete at {rate:g}"
        )
