"""A resumed run routes as the checkpoint does: weights of one router mean nothing to another, and Megatron would not say.

Competition and `--router topk` share their router, so a run may go on from the one with the other.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from megatron.core.transformer.module import MegatronModule

from megatron_compete.checkpoint.location import find_checkpoint
from megatron_compete.checkpoint.reader import TorchDistCheckpoint
from megatron_compete.errors import CompeteError
from megatron_compete.moe.rivals import RIVALS
from megatron_compete.moe.rivals.config import RivalConfig, flag_of
from megatron_compete.training.agreement import on_rank_0
from megatron_compete.training.arguments import RIVAL_PREFIX
from megatron_compete.training.resume import load_folder


def check_router_on_resume(model: list[MegatronModule], args: argparse.Namespace) -> list[MegatronModule]:
    """Look at the checkpoint's arguments before it is loaded; a hook that Megatron calls when the model is built.

    Megatron's own check of arguments comes after the weights, whose shapes it would name. Not under --finetune, nor
    where the arguments cannot be read here: Megatron will tell.

    Raises:
        CompeteError: on every rank, as `check_same_router`.
    """
    folder = on_rank_0(lambda: load_folder(args))
    if folder is not None and args.ckpt_format == "torch_dist" and not args.finetune:
        saved = on_rank_0(lambda: _saved_arguments(folder, args.ckpt_step))
        if saved is not None:
            check_same_router(argparse.Namespace(**saved), args)
    return model


def _saved_arguments(folder: Path, step: int | None) -> dict[str, Any] | None:
    """Those of ours among the checkpoint's arguments; None if there is none to read."""
    try:
        arguments = TorchDistCheckpoint(find_checkpoint(folder, step)).arguments
    except CompeteError:
        return None
    return {name: value for name, value in arguments.items() if name.startswith("router")}


def check_same_router(saved: argparse.Namespace, now: argparse.Namespace) -> None:
    """Raise a `CompeteError` where a rival router's checkpoint would be read by another router.

    Args:
        saved: the checkpoint's arguments; older ones and other trainers' lack ours.
        now: this run's.
    """
    before = getattr(saved, "router", "topk")
    if before != now.router and (before in RIVALS or now.router in RIVALS):
        raise CompeteError(
            f"--router {now.router} cannot go on from a checkpoint of --router {before}: its router is another. Give "
            f"--router {before}, or start anew"
        )
    if now.router not in RIVALS:
        return
    for field in dataclasses.fields(RivalConfig):
        value, kept = (getattr(args, RIVAL_PREFIX + field.name, field.default) for args in (now, saved))
        if value != kept:
            raise CompeteError(
                f"{flag_of(field.name)} {value} is {kept} in the checkpoint, and its model is another with it: give the "
                "checkpoint's"
            )
