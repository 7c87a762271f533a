"""The run folder's progress.json, the last step that was logged, and steps.jsonl, all of them.

Both for `megatron-compete status` and whoever else wants a run's curve: the log is written by several processes, whose
lines may run together. Written at every --log-interval by the last rank, which knows the loss, and progress.json once
more when the trainer leaves. Other ranks and other steps do nothing. Times are those of Megatron's own log line: without evaluation and saving.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.training import get_args, get_timers
from megatron.training.checkpointing import get_checkpoint_tracker_filename
from megatron.training.utils import is_last_rank

from megatron_compete.launch.run_files import RunFiles, current_run
from megatron_compete.upstream import wrap_symbol

LOSS = "lm loss"
STEP_TIMER = "interval-time"


class ProgressLog:
    """Around Megatron's `training_log`."""

    def __init__(self, run: RunFiles) -> None:
        self.run = run
        self._logged: dict[str, Any] | None = None
        self._iteration: int | None = None
        self._active_seconds = 0.0

    def log(
        self, upstream: Callable[..., Any], loss_dict: dict[str, Any], total_loss_dict: dict[str, Any], learning_rate: Any, iteration: int, *args: Any, **kwargs: Any
    ) -> Any:  # fmt: skip
        """Megatron's log of a step, then ours where it wrote a line."""
        result = upstream(loss_dict, total_loss_dict, learning_rate, iteration, *args, **kwargs)
        settings = get_args()
        if self._iteration is None:
            self._iteration = iteration - 1
        if is_last_rank() and iteration % settings.log_interval == 0:
            self._write(iteration, loss_dict.get(LOSS), settings)
        return result

    def _write(self, iteration: int, loss: torch.Tensor | None, settings: Any) -> None:
        """The timer's seconds are complete here: Megatron has just stopped and started it for its own line."""
        active = get_timers()(STEP_TIMER).active_time()
        seconds = (active - self._active_seconds) / max(1, iteration - (self._iteration or 0))
        self._iteration, self._active_seconds = iteration, active
        batch = settings.micro_batch_size * settings.data_parallel_size * get_num_microbatches()
        self._logged = {
            "iteration": iteration,
            "train_iters": settings.train_iters,
            "loss": _finite(loss),
            "tokens_per_second": batch * settings.seq_length / seconds if seconds > 0 else None,
            "seconds_per_step": seconds,
            "consumed_tokens": settings.consumed_train_samples * settings.seq_length,
            "world_size": settings.world_size,
            "log_interval": settings.log_interval,
        }
        step = {name: self._logged[name] for name in ("iteration", "loss", "seconds_per_step", "consumed_tokens")}
        self.run.add_step({**step, "time": time.time()})
        self.put()

    def put(self) -> None:
        """Write what was logged last, with the present checkpoint and time."""
        if self._logged is not None:
            self.run.write_progress({**self._logged, "time": time.time(), "checkpoint": last_saved(get_args().save)})


def _finite(loss: torch.Tensor | None) -> float | None:
    """JSON has no word for NaN."""
    return float(loss) if loss is not None and math.isfinite(loss) else None


def last_saved(folder: str | None) -> int | None:
    """Iteration of the last checkpoint that was completed in this folder, as Megatron's tracker file says."""
    if folder is None:
        return None
    try:
        return int(Path(get_checkpoint_tracker_filename(folder)).read_text())
    except (OSError, ValueError):  # none yet, or `release`
        return None


@contextlib.contextmanager
def written_progress() -> Iterator[None]:
    """Keep progress.json while Megatron's trainer runs; without a run folder, nothing happens."""
    run = current_run()
    if run is None:
        yield
        return
    ours = ProgressLog(run)
    try:
        with wrap_symbol("megatron.training.training:training_log", ours.log):
            yield
    finally:
        ours.put()
