"""What keeps a run from losing work: a claimed save folder, a whole checkpoint, guarded saves, a watchdog.

`docs/operations/reliability.md` has the faults, and what becomes of a run at each.
"""

import argparse
import contextlib
import functools
from collections.abc import Iterator

from megatron.core.transformer.module import MegatronModule
from megatron.training.models.gpt import GPTModelConfig

from megatron_compete.resilience.rerun import wind_back_statistics
from megatron_compete.resilience.resuming.choice import choose_on_resume
from megatron_compete.resilience.resuming.saved_run import check_saved_run
from megatron_compete.resilience.saving.folder import claim_save_folder, release_locks
from megatron_compete.resilience.saving.guard import Guard
from megatron_compete.resilience.saving.worker import watch_save_worker
from megatron_compete.resilience.stuck_ranks.watchdog import start_watchdog, stop_watchdog


@contextlib.contextmanager
def reliable(config: GPTModelConfig, args: argparse.Namespace) -> Iterator[None]:
    """Train with all of it; the checks run when Megatron has built the model and before it loads a checkpoint.

    Raises:
        CompeteError: training ended, by itself or because it was told to, and the last checkpoint could not be saved.
    """
    guard = Guard(args)
    with contextlib.ExitStack() as running:
        config.pre_wrap_hooks += [
            functools.partial(claim_save_folder, args=args),
            functools.partial(choose_on_resume, args=args, running=running),
            functools.partial(check_saved_run, args=args, running=running),
            functools.partial(wind_back_statistics, running=running),
            functools.partial(_watch, limit=args.stuck_timeout),
        ]
        running.callback(release_locks)
        running.enter_context(guard.standing())
        if args.use_persistent_ckpt_worker:
            running.enter_context(watch_save_worker(args.rank, args.local_rank))
        running.callback(stop_watchdog)
        try:
            yield
            guard.check_last_save()
        except SystemExit as left:  # how Megatron leaves its loop
            if not left.code:
                guard.check_last_save()
            raise


def _watch(model: list[MegatronModule], limit: float) -> list[MegatronModule]:
    start_watchdog(limit)
    return model
