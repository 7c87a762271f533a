"""A checkpoint that cannot be saved: all ranks notice alike, the older ones survive, and the run goes on or stops.

Megatron tells all ranks when a rank could not write its shards. What rank 0 writes after them (`.metadata`,
`metadata.json`, the tracker) it does not: rank 0 raises there alone and the others wait in a barrier until the
communication times out. Here rank 0 holds such an error back until all ranks can be told. A save is also made safe
against kills: an unfinished folder of the same name is moved out of the way first, and the tracker is replaced in one
step.

Covered are `torch_dist` checkpoints into `--save`, also with `--async-save`; non-persistent and local ones are not.
"""

import argparse
import contextlib
import queue
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.training import async_utils, checkpointing, get_tensorboard_writer
from megatron.training.utils import print_rank_0
from torch.distributed.checkpoint import CheckpointException

from megatron_compete.common.errors import CompeteError
from megatron_compete.resilience.agreement import describe, on_rank_0, problems_of_ranks
from megatron_compete.resilience.resuming.choice import iteration_folder
from megatron_compete.resilience.saving.causes import cause_of_rank, naming_causes
from megatron_compete.resilience.saving.files import AtomicTracker, TrackerFailed, clear_up, drop_replaced, make_room
from megatron_compete.upstream import replace_symbol, wrap_symbol

FAILED_SAVES = "checkpoint/failed-saves"
"""TensorBoard: saves that failed since the run was started."""


class SaveFailed(Exception):
    """A save that failed, on all ranks."""


class Guard:
    """Around Megatron's `save_checkpoint` and what rank 0 writes at its end."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.failed = 0
        self.unsaved: str | None = None
        """Why the newest attempt to save failed; None after one that did not."""
        self._held_back: str | None = None
        self._heard = ""
        """What rank 0 was told of the ranks whose shards could not be written."""
        self._scheduled: list[int] = []

    @contextlib.contextmanager
    def standing(self) -> Iterator[None]:
        """Within it, the trainer's saves are guarded."""
        around: dict[str, Callable[..., Any]] = {
            "megatron.training.training:save_checkpoint": self._save,
            "megatron.training.training:maybe_finalize_async_save": self._finalize,
            "megatron.core.dist_checkpointing:save": self._save_shards,
            "megatron.core.dist_checkpointing.serialization:save_config": self._save_last,
            "megatron.core.dist_checkpointing.serialization:save_integrity_manifest": self._save_last,
            "megatron.core.dist_checkpointing.strategies.filesystem_async:FileSystemWriterAsync.get_save_function_and_args": naming_causes,
            "torch.distributed.checkpoint.filesystem:FileSystemWriter.finish": self._finish,
        }
        tracker = AtomicTracker(checkpointing.maybe_msc)
        with contextlib.ExitStack() as stack:
            for symbol, step in around.items():
                stack.enter_context(wrap_symbol(symbol, step))
            stack.enter_context(replace_symbol("megatron.training.checkpointing:maybe_msc", tracker))
            if not self.args.async_save and filesystem_async._results_queue is None:
                # Megatron starts a process for this queue, which a rank that is killed leaves behind with its memory; a
                # synchronous save's results are put in and taken out by one process.
                results = "megatron.core.dist_checkpointing.strategies.filesystem_async:_results_queue"
                stack.enter_context(replace_symbol(results, queue.SimpleQueue()))
            yield

    def check_last_save(self) -> None:
        """Raise a `CompeteError` if the last save of a run that has ended failed."""
        if self.unsaved is not None:
            raise CompeteError(f"training ended, but its last checkpoint is not saved: {self.unsaved}")

    def _save(self, upstream: Callable[..., None], iteration: int, *args: Any, **named: Any) -> None:
        """A save, and what to do when it fails."""
        if named.get("non_persistent_ckpt") or self.args.ckpt_format != "torch_dist" or named.get("release"):
            upstream(iteration, *args, **named)
            return
        folder = iteration_folder(Path(self.args.save), iteration)
        problem = None
        self._held_back = None
        self._heard = ""
        try:
            on_rank_0(lambda: make_room(folder))
            upstream(iteration, *args, **named)
        except TrackerFailed as error:
            torch.distributed.barrier()  # in which the other ranks are
            problem = str(error)
        except (SaveFailed, CheckpointException, CompeteError) as error:
            problem = self._reason(error)
        if self.args.async_save and problem is None:
            self._scheduled.append(iteration)
        else:
            self._conclude(iteration, problem)
        if self.unsaved is not None:
            _forget_plans(args, named)

    def _finalize(self, upstream: Callable[..., None], *args: Any, **named: Any) -> None:
        """The end of asynchronous saves, whichever are done."""
        before, problem = _unfinished(), None
        try:
            upstream(*args, **named)
        except TrackerFailed as error:
            torch.distributed.all_reduce(torch.tensor([-1], dtype=torch.int, device=torch.cuda.current_device()),
                                         op=torch.distributed.ReduceOp.MAX)  # fmt: skip  # in which the other ranks are
            problem = str(error)
        except (SaveFailed, CheckpointException) as error:
            problem = self._reason(error)
        done = before - _unfinished()
        for number in range(done):
            last = number == done - 1  # what is raised ends the loop over finished saves
            self._conclude(self._scheduled.pop(0), problem if last else None)

    def _save_shards(self, upstream: Callable[..., Any], *args: Any, **named: Any) -> Any:
        """`dist_checkpointing.save`, after which all ranks know whether rank 0 finished it."""
        request = upstream(*args, **named)
        if request is None:
            self._tell()
        else:
            request.finalize_fns.append(self._tell)
        return request

    def _tell(self) -> None:
        problems = problems_of_ranks(self._held_back)
        if problems:
            raise SaveFailed(problems.get(torch.distributed.get_rank(), ""))

    def _finish(self, upstream: Callable[..., None], *args: Any, **named: Any) -> None:
        """Rank 0's `.metadata`."""
        try:
            upstream(*args, **named)
        except OSError as error:
            self._held_back = str(error)

    def _save_last(self, upstream: Callable[..., None], *args: Any, **named: Any) -> None:
        """Rank 0's `metadata.json`, which makes a checkpoint whole, and its hashes: not without the rest."""
        if self._held_back is not None:
            return
        try:
            upstream(*args, **named)
        except OSError as error:
            self._held_back = str(error)

    def _reason(self, error: BaseException) -> str:
        """This rank's part in a failure that all ranks know of, in one line; empty if it has none."""
        if isinstance(error, CheckpointException):
            self._heard = describe({rank: cause_of_rank(failure[0]) for rank, failure in error.failures.items()})
            return ""
        return str(error) if isinstance(error, SaveFailed) or torch.distributed.get_rank() == 0 else ""

    def _conclude(self, iteration: int, problem: str | None) -> None:
        """Tell all ranks, clear up and go on or stop."""
        folder = iteration_folder(Path(self.args.save), iteration)
        problems = problems_of_ranks(problem)
        if not problems:
            self.unsaved = None
            on_rank_0(lambda: drop_replaced(folder))
            return
        self.failed += 1
        problems = {rank: text for rank, text in problems.items() if text}
        kept, heard = on_rank_0(lambda: (clear_up(folder), self._heard))
        reason = describe(problems) or heard
        self.unsaved = f"--save {folder.parent}: saving iteration {iteration} failed: {reason}; {kept}"
        if self.args.on_save_failure == "stop":
            raise CompeteError(
                f"{self.unsaved}. Make room and start again, or let it go on: --on-save-failure continue"
            )
        self._go_on(iteration)

    def _go_on(self, iteration: int) -> None:
        again = f"at iteration {iteration + self.args.save_interval}" if self.args.save_interval else "at the end"
        print_rank_0(f"megatron-compete: WARNING: {self.unsaved}. Training goes on; the next try is {again}")
        writer = get_tensorboard_writer()
        if writer is not None:
            writer.add_scalar(FAILED_SAVES, self.failed, iteration)


def _unfinished() -> int:
    """Asynchronous saves under way; the same on all ranks."""
    queue = async_utils._async_calls_queue
    return 0 if queue is None else int(queue.get_num_unfinalized_calls())


def _forget_plans(args: Sequence[Any], named: dict[str, Any]) -> None:
    """What Megatron keeps of a save for the next one (--ckpt-assume-constant-structure) is of one that did not happen."""
    for context in (*args, named.get("checkpointing_context")):
        if isinstance(context, dict):
            context.pop("save_strategy", None)
