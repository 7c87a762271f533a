"""How a rank leaves: exit code and outcome for whoever decides whether the job goes on.

    0   finished: all of --train-iters, or the user's own --exit-interval
    2   bad input; said once
    75  told to stop (SIGTERM, --exit-duration-in-mins) and saved: the same command goes on at the next step
    *   anything else is a failure

With --exit-signal-handler Megatron looks for the signal when a step has ended: it then saves and leaves. So the signal
takes effect after what is left of the step, and after the evaluation or the save that is going on; neither looks for
it. A second signal changes nothing. Until training begins SIGTERM ends the rank at once (`runtime/stop_signal.py`), and
so it does throughout, without saving, where --exit-signal-handler is off.
"""

import contextlib
import faulthandler
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
from megatron.training import get_args, global_vars, training
from megatron.training.dist_signal_handler import DistributedSignalHandler, get_device
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from megatron_compete.errors import CompeteError, exit_with_error
from megatron_compete.runtime.run_files import Outcome, current_run, record_failure
from megatron_compete.runtime.stop_signal import STOPPED_EXIT_CODE, stop_signal_is_handled

EXIT_SECONDS = 60.0
"""What a failed rank has for its farewell: threads, worker processes and NCCL may all wait for peers in vain."""
PATIENCE_SECONDS = 60.0
"""What rank 0 may take longer than another rank to meet the bad input of both: imports from a slow file system."""
PEER_SECONDS = 1.0
"""A rank whose peers were told to stop a moment before it sees them vanish; its own signal is then under way."""


class ExitWatch:
    """Stands in for `train` and `checkpoint_and_decide_exit` of Megatron's trainer; knows why the loop was left."""

    def __init__(self, train: Callable[..., Any], decide: Callable[..., bool]) -> None:
        self.upstream = train, decide
        self.steps = 0
        """Steps that ended in this process."""
        self.stopped_at: int | None = None
        """Iteration after which the job was told to stop."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Megatron's training loop; from here on it handles the stop signal."""
        stop_signal_is_handled()
        return self.upstream[0](*args, **kwargs)

    def decide(
        self, model: Any, optimizer: Any, opt_param_scheduler: Any, iteration: int, *args: Any, **kwargs: Any
    ) -> bool:
        """Megatron's decision; all ranks make the same one."""
        leaves = self.upstream[1](model, optimizer, opt_param_scheduler, iteration, *args, **kwargs)
        self.steps += 1
        if leaves and not _wanted_by_user(iteration):
            self.stopped_at = iteration
        return leaves

    def told_to_stop(self) -> bool:
        """Whether this rank has got the signal while Megatron handles it."""
        handler = global_vars._GLOBAL_SIGNAL_HANDLER
        return handler is not None and handler._signal_received


def _wanted_by_user(iteration: int) -> bool:
    """Whether --exit-interval or a phase transition ends the run here, as Megatron asks."""
    args = get_args()
    at_interval = bool(args.exit_interval) and iteration % args.exit_interval == 0
    return at_interval or iteration in (args.phase_transition_iterations or ())


def _any_received(handler: DistributedSignalHandler) -> list[bool]:
    """Whether any rank got the signal: one reduction of one number.

    Megatron gathers one number from each rank at each step, and reads them from the device one by one.
    """
    received = torch.tensor([handler._signal_received], device=get_device(), dtype=torch.int32)
    torch.distributed.all_reduce(received, op=torch.distributed.ReduceOp.MAX)
    return [bool(received.item())]


@contextlib.contextmanager
def watched_exit() -> Iterator[ExitWatch]:
    """Megatron's trainer with an `ExitWatch`, and with a cheaper look for the signal."""
    watch = ExitWatch(training.train, training.checkpoint_and_decide_exit)
    gather = DistributedSignalHandler.signals_received
    training.train, training.checkpoint_and_decide_exit = watch.train, watch.decide
    DistributedSignalHandler.signals_received = _any_received
    try:
        yield watch
    finally:
        training.train, training.checkpoint_and_decide_exit = watch.upstream
        DistributedSignalHandler.signals_received = gather


def run_rank(train: Callable[[], None], rank: int, local_rank: int) -> None:
    """Run the trainer on this rank, and leave as the module says; returns where training has finished.

    Raises:
        SystemExit: 2 or 75.
        Exception: a failure, after it was recorded.
    """
    with watched_exit() as watch:
        try:
            train()
        except CompeteError as error:
            refuse_once(error, rank)
        except SystemExit as error:
            if error.code not in (None, 0):
                _fail(error, rank, local_rank)
                raise
        except Exception as error:
            now = time.time()
            if not _stopped_at_start(watch):
                _fail(error, rank, local_rank, now)
                raise
            traceback.print_exc()
            _write_outcome(rank, "stopped", "before the first step was done")
            raise SystemExit(STOPPED_EXIT_CODE) from None
    _leave_together(watch, rank)


def _stopped_at_start(watch: ExitWatch) -> bool:
    """Whether an exception is but the end of peers that were told to stop, when nothing could be saved yet."""
    if watch.steps == 0 and not watch.told_to_stop():
        time.sleep(PEER_SECONDS)  # until training begins, the signal ends the process here
    return watch.steps == 0 and watch.told_to_stop()


def _leave_together(watch: ExitWatch, rank: int) -> None:
    """Write the outcome, and leave only when it is written: a launcher ends all ranks when one leaves with 75."""
    if watch.stopped_at is None:
        _write_outcome(rank, "finished")
    else:
        _write_outcome(rank, "stopped", f"after iteration {watch.stopped_at}")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    if watch.stopped_at is not None:
        raise SystemExit(STOPPED_EXIT_CODE)


def _fail(error: BaseException, rank: int, local_rank: int, at: float | None = None) -> None:
    """Record a failure where the batch script and torchrun's agent look for it, and say it in one line."""
    code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
    failure = record_failure("".join(traceback.format_exception_only(error)), rank, local_rank, code, at)
    get_error_handler().record_exception(error)
    print(f"megatron-compete: {failure.describe()}", file=sys.stderr, flush=True)
    faulthandler.dump_traceback_later(EXIT_SECONDS, exit=True)


def _write_outcome(rank: int, outcome: Outcome, *details: str) -> None:
    run = current_run()
    if run is not None and rank == 0:
        run.write_outcome(outcome, *details)


def refuse_once(error: CompeteError, rank: int) -> NoReturn:
    """Say `error` once for the job and leave with exit code 2.

    All ranks meet the same bad input. Rank 0 says so and goes, and the launcher ends the others; a rank that is still
    there after `PATIENCE_SECONDS` is alone with its error and says it.
    """
    if rank != 0:
        time.sleep(PATIENCE_SECONDS)
        error = CompeteError(f"rank {rank} alone: {error}")
    run = _run_if_readable()
    if run is not None:
        run.write_outcome("refused", " ".join(str(error).split()))
    exit_with_error(error)


def _run_if_readable() -> Any:
    try:
        return current_run()
    except CompeteError:  # it is the run folder that is wrong
        return None
