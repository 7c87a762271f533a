"""What the checkpoint that a run goes on from says of the run that saved it, and whether this one may go on."""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron.core.transformer.module import MegatronModule
from megatron.training import training
from megatron.training.utils import print_rank_0

from megatron_compete.checkpoint.location import RELEASE, find_checkpoint
from megatron_compete.checkpoint.reader import TorchDistCheckpoint
from megatron_compete.common.errors import CompeteError
from megatron_compete.resilience.agreement import on_rank_0
from megatron_compete.resilience.resuming.changes import SavedRun, check_changes, notes_on
from megatron_compete.resilience.resuming.choice import load_folder

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


def check_saved_run(model: list[MegatronModule], args: argparse.Namespace) -> list[MegatronModule]:
    """Compare the checkpoint's arguments with this run's; a hook that Megatron calls before it loads anything.

    Raises:
        CompeteError: on every rank, the first change that this run may not make.
    """
    found = on_rank_0(lambda: _look(args)) if args.ckpt_format == "torch_dist" else None
    if found is not None:
        notes, rates = found
        for note in notes:
            print_rank_0(f"megatron-compete: {note}")
        _go_on(args, rates)
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


def _go_on(args: argparse.Namespace, rates: dict[str, Any]) -> None:
    """Load with the checkpoint's rates, and go on with those that are asked for."""
    kept = not args.override_opt_param_scheduler
    if kept:
        args.use_checkpoint_opt_param_scheduler = True  # where the courses differ, it is without effect
    if not args.no_load_optim:
        forget_rates()
        training.load_checkpoint = _Loading(training.load_checkpoint, args, rates, kept)


def forget_rates() -> None:
    """Undo what `check_saved_run` put around Megatron's loading."""
    if isinstance(training.load_checkpoint, _Loading):
        training.load_checkpoint = training.load_checkpoint.upstream


class _Loading:
    """Megatron's `load_checkpoint`, for an optimizer whose groups have other learning rates than the checkpoint's.

    Megatron knows a group again by its rates, among others, and finds none where `--lr` has changed
    (`_filter_and_reorder_param_groups`, megatron/core/optimizer/optimizer.py).
    """

    def __init__(
        self, upstream: Callable[..., Any], args: argparse.Namespace, rates: dict[str, Any], kept: bool
    ) -> None:
        functools.update_wrapper(self, upstream)
        self.upstream, self.kept = upstream, kept
        self.saved = {
            key: {getattr(args, name): rates[name] for name in reversed(names)} for key, names in RATES.items()
        }

    def __call__(self, model: Any, optimizer: Any, scheduler: Any, *args: Any, **named: Any) -> Any:
        if optimizer is None:
            return self.upstream(model, optimizer, scheduler, *args, **named)
        wanted = [{key: group[key] for key in RATES} for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group.update({key: self.saved[key].get(group[key], group[key]) for key in RATES})
        result = self.upstream(model, optimizer, scheduler, *args, **named)
        if not self.kept:
            for group, rates in zip(optimizer.param_groups, wanted, strict=True):
                group.update(rates)
            scheduler.step(0)
        return result
