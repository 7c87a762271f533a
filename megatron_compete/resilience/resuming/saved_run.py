"""What the checkpoint that a run goes on from says of the run that saved it, and whether this one may go on."""

import argparse
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron.core.transformer.module import MegatronModule
from megatron.training.utils import print_rank_0

from megatron_compete.checkpoint.location import RELEASE, find_checkpoint
from megatron_compete.checkpoint.reader import TorchDistCheckpoint
from megatron_compete.common.errors import CompeteError
from megatron_compete.resilience.agreement import on_rank_0
from megatron_compete.resilience.resuming.changes import SavedRun, check_changes, notes_on
from megatron_compete.resilience.resuming.choice import load_folder
from megatron_compete.upstream import wrap_symbol

RATES = {"max_lr": ("lr", "decoupled_lr"), "min_lr": ("min_lr", "decoupled_min_lr")}
"""Keys of an optimizer's parameter groups, and the arguments that they come from."""


def read_saved_run(folder: Path, step: int | None = None) -> SavedRun | None:
    """The run that saved what would be loaded from `folder`; None if there is nothing that can be read here."""
    try:
        path = find_checkpoint(folder, step)
        checkpoint = TorchDistCheckpoint(path)
    except CompeteError:
        return None  # Megatron will tell
    return SavedRun(
        argparse.Namespace(**checkpoint.arguments), checkpoint.iteration, path.name == RELEASE, checkpoint.rate_schedule
    )


def check_saved_run(
    model: list[MegatronModule], args: argparse.Namespace, running: contextlib.ExitStack
) -> list[MegatronModule]:
    """Compare the checkpoint's arguments with this run's; a hook that Megatron calls before it loads anything.

    Args:
        running: closed when the run ends.
    Raises:
        CompeteError: on every rank, the first change that this run may not make.
    """
    found = on_rank_0(lambda: _look(args)) if args.ckpt_format == "torch_dist" else None
    if found is not None:
        notes, rates = found
        for note in notes:
            print_rank_0(f"megatron-compete: {note}")
        _go_on(args, rates, running)
    return model


def _look(args: argparse.Namespace) -> tuple[tuple[str, ...], dict[str, Any]] | None:
    """What is worth saying of the changes, and the checkpoint's learning rates; None where nothing goes on but weights."""
    folder = load_folder(args)
    saved = None if folder is None or args.finetune else read_saved_run(folder, args.ckpt_step)
    if saved is None or saved.release:
        return None
    check_changes(saved, args)
    names = [name for sources in RATES.values() for name in sources]
    return notes_on(saved, args), {name: getattr(saved.arguments, name, None) for name in names}


def _go_on(args: argparse.Namespace, rates: dict[str, Any], running: contextlib.ExitStack) -> None:
    """Load with the checkpoint's rates, and go on with those that are asked for."""
    kept = not args.override_opt_param_scheduler
    if kept:
        args.use_checkpoint_opt_param_scheduler = True  # where the courses differ, it is without effect
    if not args.no_load_optim:
        loading = _Loading(args, rates, kept)
        running.enter_context(wrap_symbol("megatron.training.training:load_checkpoint", loading.load))


class _Loading:
    """Around Megatron's `load_checkpoint`, for an optimizer whose groups have other learning rates than the checkpoint's.

    Megatron knows a group again by its rates, among others, and finds none where `--lr` has changed
    (`_filter_and_reorder_param_groups`, megatron/core/optimizer/optimizer.py).
    """

    def __init__(self, args: argparse.Namespace, rates: dict[str, Any], kept: bool) -> None:
        self.kept = kept
        self.saved = {
            key: {getattr(args, name): rates[name] for name in reversed(names)} for key, names in RATES.items()
        }

    def load(
        self, upstream: Callable[..., Any], ddp_model: Any, optimizer: Any, opt_param_scheduler: Any, *args: Any, **named: Any
    ) -> Any:  # fmt: skip
        """Megatron's, which meets the optimizer's groups under the rates that they were saved with."""
        if optimizer is None:
            return upstream(ddp_model, optimizer, opt_param_scheduler, *args, **named)
        wanted = [{key: group[key] for key in RATES} for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group.update({key: self.saved[key].get(group[key], group[key]) for key in RATES})
        result = upstream(ddp_model, optimizer, opt_param_scheduler, *args, **named)
        if not self.kept:
            for group, rates in zip(optimizer.param_groups, wanted, strict=True):
                group.update(rates)
            opt_param_scheduler.step(0)
        return result
