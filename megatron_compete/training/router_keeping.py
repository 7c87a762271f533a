"""A resumed run routes as the checkpoint does: weights of one router mean nothing to another, and Megatron would not say.

Competition and `--router topk` share their router, so a run may go on from the one with the other.
"""

import argparse
import dataclasses
from collections.abc import Iterable

from megatron_compete.moe.rivals import RIVALS
from megatron_compete.moe.rivals.config import RivalConfig, flag_of
from megatron_compete.training.arguments import RIVAL_PREFIX


def router_changes(saved: argparse.Namespace, now: argparse.Namespace) -> Iterable[str]:
    """What keeps the router of the arguments `now` from going on with the checkpoint's, in words.

    Args:
        saved: the checkpoint's arguments; older ones and other trainers' lack ours.
    """
    before = getattr(saved, "router", "topk")
    if before != now.router and (before in RIVALS or now.router in RIVALS):
        yield (
            f"--router {now.router} cannot go on from a checkpoint of --router {before}: its router is another. Give "
            f"--router {before}, or start anew"
        )
    elif now.router in RIVALS:
        for field in dataclasses.fields(RivalConfig):
            value, kept = (getattr(args, RIVAL_PREFIX + field.name, field.default) for args in (now, saved))
            if value != kept:
                yield (
                    f"{flag_of(field.name)} {value} is {kept} in the checkpoint, and its model is another with it: give "
                    "the checkpoint's"
                )
