"""A resumed run routes as the checkpoint does: weights of one router mean nothing to another, and Megatron would not say.

Competition and `--router topk` share their router, so a run may go on from the one with the other.
"""

import argparse
import dataclasses
from collections.abc import Iterable

from megatron_compete.moe.baselines import BASELINES
from megatron_compete.moe.baselines.config import PREFIX as BASELINE_PREFIX
from megatron_compete.moe.baselines.config import BaselineConfig, flag_of


def router_changes(saved: argparse.Namespace, now: argparse.Namespace) -> Iterable[str]:
    """What keeps the router of the arguments `now` from going on with the checkpoint's, in words.

    Args:
        saved: the checkpoint's arguments; older ones and other trainers' lack ours.
    """
    before = getattr(saved, "router", "topk")
    if before != now.router and (before in BASELINES or now.router in BASELINES):
        yield (
            f"--router {now.router} cannot go on from a checkpoint of --router {before}: its router is another. Give "
            f"--router {before}, or start anew"
        )
    elif now.router in BASELINES:
        for field in dataclasses.fields(BaselineConfig):
            value, kept = (getattr(args, BASELINE_PREFIX + field.name, field.default) for args in (now, saved))
            if value != kept:
                yield (
                    f"{flag_of(field.name)} {value} is {kept} in the checkpoint, and its model is another with it: give "
                    "the checkpoint's"
                )
        if now.router == "hash" and now.seed != saved.seed:
            yield (
                f"--seed {now.seed} is {saved.seed} in the checkpoint, and --router hash draws its table from it: give the "
                "checkpoint's"
            )
