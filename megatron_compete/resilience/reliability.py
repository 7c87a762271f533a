"""What keeps a run from losing work: a claimed save folder, a whole checkpoint, guarded saves, a watchdog.

`docs/reliability.md` has the faults, and what becomes of a run at each.
"""

import argparse
import contextlib
import functools
from collections.abc import Iterator

from megatron.core.transformer.module import MegatronModule
from megatron.training.models.gpt import GPTModelConfig

from megatron_compete.resilience.rerun import keep_statistics
from megatron_compete.resilience.resuming.choice import choose_on_resume
from megatron_compete.resilience.resuming.saved_run import check_saved_run, forget_rates
from megatron_compete.resilience.saving.folder import claim_save_folder, release_locks
from megatron_compete.resilience.saving.guard import check_last_save, forget_saving, install_saving
from megatron_compete.resilience.saving.worker import watch_save_worker
from megatron_compete.resilience.stuck_ranks.watchdog import start_watchdog, stop_watchdog


@contextlib.contextmanager
def reliable(config: GPTModelConfig, args: argparse.Namespace) -> Iterator[None]:
    """Train with all of it; the checks run when Megatron has built the model and before it loads a checkpoint.

    Raises:
        CompeteError: training ended, by itself or because it was told to, and the last checkpoint could not be saved.
    """
    config.pre_wrap_hooks.append(functools.partial(claim_save_folder, args=args))
    config.pre_wrap_hooks.append(functools.partial(choose_on_resume, args=args))
    config.pre_wrap_hooks.append(functools.partial(check_saved_run, args=args))
    config.pre_wrap_hooks.append(keep_statistics)
    config.pre_wrap_hooks.append(functools.partial(_watch, limit=args.stuck_timeout))
    install_saving(args)
    if args.use_persistent_ckpt_worker:
        watch_save_worker(args.rank, args.local_rank)
    try:
        yield
        check_last_save()
    except SystemExit as left:  # how Megatron leaves its loop
        if not left.code:
            check_last_save()
        raise
    finally:
        stop_watchdog()
        forget_saving()
        forget_rates()
        release_locks()


def _watch(model: list[MegatronModule], limit: float) -> list[MegatronModule]:
    start_watchdog(limit)
    return model
