"""How a rank leaves: exit code and outcome for whoever decides whether the job goes on.

    0   finished: all of --train-iters, the user's own --exit-interval, or an evaluation alone (--skip-train)
    2   bad input; said once
    75  told to stop (SIGTERM, --exit-duration-in-mins) and saved: the same command goes on at the next step
    *   anything else is a failure

Finished is what training itself has decided: its loop came to its end, or left as the user had asked. That the process
leaves without an error code is no sign of it (`exits.py`).

With --exit-signal-handler Megatron looks for the signal when a step has ended: it then saves and leaves. So the signal
takes effect after what is left of the step, and after the evaluation or the save that is going on; neither looks for
it. A second signal changes nothing. Until training begins SIGTERM ends the rank at once (`launch/stop_signal.py`), and
so it does throughout, without saving, where --exit-signal-handler is off.
"""

import contextlib
import faulthandler
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from megatron.training import get_args, global_vars
from megatron.training.dist_signal_handler import DistributedSignalHandler, get_device
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from megatron_compete.common.errors import USAGE_EXIT_CODE, CompeteError, exit_with_error
from megatron_compete.launch.run_files import Outcome, current_run, record_failure
from megatron_compete.launch.stop_signal import STOPPED_EXIT_CODE, stop_signal_is_handled
from megatron_compete.resilience.agreement import PeerFailed
from megatron_compete.resilience.devices import NoDevice
from megatron_compete.resilience.stopping.exits import Exit, LastWords
from megatron_compete.upstream import replace_symbol, wrap_symbol

EXIT_SECONDS = 60.0
"""What a failed rank has for its farewell: threads, worker processes and NCCL may all wait for peers in vain."""
PATIENCE_SECONDS = 60.0
"""What rank 0 may take longer than another rank to meet the bad input of both: imports from a slow file system."""
PEER_SECONDS = 1.0
"""A rank whose peers were told to stop a moment before it sees them vanish; its own signal is then under way."""


class Unfinished(Exception):
    """Megatron returned from training before its end."""


PLAIN = (PeerFailed, NoDevice, Unfinished)
"""Failures that say all there is to say in one line; a stack adds nothing."""


@dataclass(frozen=True)
class End:
    """How training has ended, where that is no failure."""

    outcome: Outcome
    details: str = ""


class ExitWatch:
    """Around `train` and `checkpoint_and_decide_exit` of Megatron's trainer; knows why the loop was left."""

    def __init__(self) -> None:
        self.steps = 0
        """Steps that ended in this process."""
        self.decided: End | None = None
        """What was decided within the loop; it then leaves with `sys.exit()`."""
        self.reached: int | None = None
        """Iteration with which the loop came to its end."""

    def train(self, upstream: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Megatron's training loop; from here on it handles the stop signal."""
        stop_signal_is_handled()
        result = upstream(*args, **kwargs)
        self.reached = result[0]
        return result

    def decide(
        self, upstream: Callable[..., bool], model: Any, optimizer: Any, opt_param_scheduler: Any, iteration: int, *args: Any, **kwargs: Any
    ) -> bool:  # fmt: skip
        """Megatron's decision; all ranks make the same one."""
        leaves = upstream(model, optimizer, opt_param_scheduler, iteration, *args, **kwargs)
        self.steps += 1
        if leaves:
            self.decided = (
                End("finished") if _wanted_by_user(iteration) else End("stopped", f"after iteration {iteration}")
            )
        return leaves

    def end_on_return(self) -> End:
        """The end where Megatron's trainer has returned.

        Raises:
            Unfinished: there are steps left.
        """
        args = get_args()
        done = args.iteration if self.reached is None else self.reached  # no loop where the checkpoint has all steps
        if args.skip_train or done >= (args.train_iters or 0):
            return End("finished")
        raise Unfinished(
            f"training ended after iteration {done} of {args.train_iters}"
            + ("" if args.do_train else ": there is no training data (--split, --train-data-path)")
        )

    def end_on_exit(self, left: Exit) -> End | None:
        """The end where a `SystemExit` came through, None for a failure."""
        if self.decided is not None and not left.code:
            return self.decided
        meaning = left.meaning()
        return None if meaning is None else End(*meaning)

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
    watch = ExitWatch()
    with (
        wrap_symbol("megatron.training.training:train", watch.train),
        wrap_symbol("megatron.training.training:checkpoint_and_decide_exit", watch.decide),
        replace_symbol(
            "megatron.training.dist_signal_handler:DistributedSignalHandler.signals_received", _any_received
        ),
    ):
        yield watch


def run_rank(train: Callable[[], None], rank: int, local_rank: int) -> None:
    """Run the trainer on this rank, and leave as the module says; returns where training has finished.

    Raises:
        SystemExit: 2 or 75; 1 or Megatron's own code for a failure, of which one line says what there is to say.
        Exception: any other failure, after it was recorded.
    """
    words = LastWords()
    with watched_exit() as watch, words.heard():
        try:
            train()
            end = watch.end_on_return()
        except CompeteError as error:
            refuse_once(error, rank)
        except SystemExit as error:
            end = _end_of_exit(watch, Exit(error, words), rank, local_rank)
        except Exception as error:
            now = time.time()
            if not _stopped_at_start(watch):
                _fail(error, rank, local_rank, now)
                if isinstance(error, PLAIN):
                    raise SystemExit(1) from None
                raise
            traceback.print_exc()
            _write_outcome(rank, End("stopped", "before the first step was done"))
            raise SystemExit(STOPPED_EXIT_CODE) from None
    _leave_together(end, rank)


def _end_of_exit(watch: ExitWatch, left: Exit, rank: int, local_rank: int) -> End:
    """What a `SystemExit` means.

    Raises:
        SystemExit: it was a failure, or argparse has shown its help.
    """
    if left.is_help():
        raise SystemExit(0)
    end = watch.end_on_exit(left)
    if end is None:
        taken = (0, USAGE_EXIT_CODE, STOPPED_EXIT_CODE)  # they would say what this exit does not mean
        code = left.code if isinstance(left.code, int) and left.code not in taken else 1
        _fail(left.describe(), rank, local_rank, code=code)
        raise SystemExit(code)
    return end


def _stopped_at_start(watch: ExitWatch) -> bool:
    """Whether an exception is but the end of peers that were told to stop, when nothing could be saved yet."""
    if watch.steps == 0 and not watch.told_to_stop():
        time.sleep(PEER_SECONDS)  # until training begins, the signal ends the process here
    return watch.steps == 0 and watch.told_to_stop()


def _leave_together(end: End, rank: int) -> None:
    """Write the outcome, and leave only when it is written: a launcher ends all ranks when one leaves with 75."""
    _write_outcome(rank, end)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    if end.outcome == "stopped":
        raise SystemExit(STOPPED_EXIT_CODE)


def _fail(
    error: Exception | str,
    rank: int,
    local_rank: int,
    at: float | None = None,
    code: int = 1,
) -> None:
    """Record a failure where the batch script and torchrun's agent look for it, and say it in one line."""
    text = str(error) if isinstance(error, (str, *PLAIN)) else "".join(traceback.format_exception_only(error))
    failure = record_failure(text, rank, local_rank, code, at, follows=isinstance(error, PeerFailed))
    get_error_handler().record_exception(error if isinstance(error, Exception) else RuntimeError(error))
    print(f"megatron-compete: {failure.describe()}", file=sys.stderr, flush=True)
    faulthandler.dump_traceback_later(EXIT_SECONDS, exit=True)


def _write_outcome(rank: int, end: End) -> None:
    run = current_run()
    if run is not None and rank == 0:
        run.write_outcome(end.outcome, *filter(None, [end.details]))


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
