"""Faults that are put into a rank before its trainer starts, and runs with them.

A fault is a module-level function that every rank calls with its arguments; it looks at RANK and changes one function
of the trainer so that the real thing happens there: a signal, a full file system, a loop.
"""

import errno
import functools
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_compete.report.scalars import read_scalars
from tests.ranks import run_ranks
from tests.training.runs import MODEL, train_on_rank

KILLED = "a rank kills itself"

UNLIMITED = resource.RLIM_INFINITY

Fault = tuple[Callable[..., None], tuple[Any, ...]]

STEPS, INTERVAL = 8, 2
RUN = f"--train-iters {STEPS} --save-interval {INTERVAL} --expert-model-parallel-size 2"
"""Two ranks and a checkpoint at steps 2, 4, 6 and 8."""


def _faulty_rank(arguments: list[str], faults: list[Fault]) -> None:
    for fault, values in faults:
        fault(*values)
    try:
        train_on_rank(arguments)
    except SystemExit as error:  # without the trace, which would push the one line out of what is kept of the output
        print(f"SystemExit: {error.code}", flush=True)
        os._exit(int(error.code or 0))


def train(world_size: int, arguments: str, *faults: Fault, timeout: float = 400.0) -> None:
    """A run of the real trainer with `faults` in it."""
    model = [flag for flag in MODEL.split() if flag != "--mock-data" or "--data-path" not in arguments]
    run_ranks(world_size, _faulty_rank, [*model, *arguments.split()], list(faults), timeout=timeout)


def failing(world_size: int, arguments: str, *faults: Fault, timeout: float = 400.0) -> str:
    """The output of a run in which a rank fails; the launcher's part, ending the others, is `run_ranks`'s."""
    with pytest.raises(AssertionError) as failure:
        train(world_size, arguments, *faults, timeout=timeout)
    output = str(failure.value)
    assert "are not done" not in output, output
    return output


def killed(world_size: int, arguments: str, fault: Fault) -> None:
    """A run that a SIGKILL ends, and nothing else before it."""
    output = failing(world_size, arguments, fault)
    assert "error: " not in output and KILLED in output, output


def losses(folder: Path) -> dict[int, float]:
    """The loss curve of a TensorBoard folder."""
    return read_scalars(folder)["lm loss"]


def assert_goes_on(resumed: Path, undisturbed: Path, after: int) -> None:
    """The resumed run has all steps after `after`, with the undisturbed run's losses, bit for bit."""
    whole, rest = losses(undisturbed), losses(resumed)
    assert rest == {step: loss for step, loss in whole.items() if step > after}
    assert max(rest) == STEPS


def _is_rank(rank: int) -> bool:
    return int(os.environ["RANK"]) == rank


def _kill(*args: Any, **named: Any) -> None:
    print(KILLED, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def _at_step(rank: int, step: int, action: Callable[[], None]) -> None:
    """Run `action` within the data loading of a step, counted from 1."""
    from megatron_compete.training import batches
    from megatron_compete.training.spec import trainer_step

    upstream = batches._read

    def read(data_iterator: Any) -> Any:
        if _is_rank(rank) and trainer_step() + 1 == step:
            action()
        return upstream(data_iterator)

    batches._read = read


def kill_at_step(rank: int, step: int) -> None:
    """SIGKILL in the middle of a step."""
    _at_step(rank, step, _kill)


def stop_at_step(rank: int, step: int) -> None:
    """SIGSTOP: the process is there and does nothing, its threads neither."""
    _at_step(rank, step, lambda: os.kill(os.getpid(), signal.SIGSTOP))


def tell_at_step(rank: int, step: int) -> None:
    """The stop signal."""
    _at_step(rank, step, lambda: os.kill(os.getpid(), signal.SIGTERM))


def time_is_up_at_step(step: int) -> None:
    """--exit-duration-in-mins is over from this step on, and not before."""
    from megatron.training import training

    training._TRAIN_START_TIME = time.time()  # not that of the warm process this one was forked from
    _at_step(0, step, lambda: setattr(training, "_TRAIN_START_TIME", 0.0))


def sleep_at_step(rank: int, step: int, seconds: float) -> None:
    """A data loader that hangs."""
    _at_step(rank, step, lambda: time.sleep(seconds))


def _busy_data_loader() -> None:
    while True:
        pass


def loop_at_step(rank: int, step: int) -> None:
    """A data loader in an endless loop."""
    _at_step(rank, step, _busy_data_loader)


def kill_at_save(moment: str, iteration: int) -> None:
    """SIGKILL of a writer while the checkpoint of `iteration` is written; `MOMENTS` says when."""
    rank, owner, name, condition = _moment(moment)
    upstream = getattr(owner, name)

    @functools.wraps(upstream)
    def call(*args: Any, **named: Any) -> Any:
        from megatron.training import get_args

        if _is_rank(rank) and get_args().curr_iteration + 1 == iteration and condition(args):
            _kill()
        return upstream(*args, **named)

    setattr(owner, name, call)


MOMENTS = ("first shard", "between shards", "before .metadata", "before metadata.json", "before the tracker", "within the tracker")  # fmt: skip


def _moment(moment: str) -> tuple[int, Any, str, Callable[[Any], bool]]:
    """Rank, and the function before which it is killed."""
    from megatron.core.dist_checkpointing.strategies import filesystem_async
    from torch.distributed.checkpoint.filesystem import FileSystemWriter

    from megatron_compete.checkpoint.location import TRACKER
    from megatron_compete.resilience.resuming import choice
    from megatron_compete.resilience.saving import files, guard

    writes = iter(range(1_000_000))
    always = lambda args: True  # noqa: E731
    return {
        "first shard": (1, filesystem_async, "_write_item", always),
        "between shards": (1, filesystem_async, "_write_item", lambda args: next(writes) == 5),
        "before .metadata": (0, FileSystemWriter, "finish", always),
        "before metadata.json": (0, guard.Guard, "_save_last", always),
        "before the tracker": (0, files, "write_whole", always),
        "within the tracker": (0, choice.os, "replace", lambda args: str(args[1]).endswith(TRACKER)),
    }[moment]


def full_disk(rank: int, iteration: int, until: int, limit: int = 20_000) -> None:
    """Shards of this rank may not grow beyond `limit` bytes, for saves from `iteration` on and before `until`."""
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    upstream = FileSystemWriterAsync.write_preloaded_data

    @functools.wraps(upstream)
    def write(*args: Any, **named: Any) -> Any:
        from megatron.training import get_args

        full = _is_rank(rank) and iteration <= get_args().curr_iteration + 1 < until
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit if full else UNLIMITED, UNLIMITED))
        try:
            return upstream(*args, **named)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (UNLIMITED, UNLIMITED))

    FileSystemWriterAsync.write_preloaded_data = staticmethod(write)


def fail_on_write(name: str, iteration: int) -> None:
    """ENOSPC on rank 0 when it writes `.metadata`, `metadata.json` or the tracker of `iteration`."""
    from megatron.core.dist_checkpointing import serialization
    from torch.distributed.checkpoint.filesystem import FileSystemWriter

    from megatron_compete.resilience.saving import files

    folder = f"iter_{iteration:07d}"
    owner, attribute, is_meant = {
        ".metadata": (FileSystemWriter, "finish", lambda args: str(args[0].path).endswith(folder)),
        "metadata.json": (serialization, "save_config", lambda args: str(args[1]).endswith(folder)),
        "tracker": (files, "write_whole", lambda args: args[1] == str(iteration)),
    }[name]
    upstream = getattr(owner, attribute)

    @functools.wraps(upstream)
    def write(*args: Any, **named: Any) -> Any:
        if is_meant(args):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        return upstream(*args, **named)

    setattr(owner, attribute, write)


def nan_at_step(rank: int, step: int, times: int) -> None:
    """The loss of a step is not a number, the first `times` times that it is computed."""
    from megatron_compete.training import batches
    from megatron_compete.training.spec import trainer_step

    upstream, count = batches.loss_func, iter(range(times))

    def loss_func(loss_mask: Any, output: Any, **named: Any) -> Any:
        if _is_rank(rank) and trainer_step() + 1 == step and next(count, None) is not None:
            output = output * float("nan")
        return upstream(loss_mask, output, **named)

    batches.loss_func = loss_func


def kill_in_index_cache(name: str) -> None:
    """SIGKILL of rank 0 while the file of Megatron's dataset cache whose name contains `name` is written."""
    import numpy

    upstream = numpy.save

    def save(file: Any, array: Any, **options: Any) -> None:
        if _is_rank(0) and name in str(getattr(file, "name", file)):
            file.write(b"half of it")
            file.flush()
            _kill()
        upstream(file, array, **options)

    numpy.save = save


def run_every_step_twice() -> None:
    """The rerun machine's statistics mode, which Megatron's own flag does not reach."""
    from megatron.core.rerun_state_machine import RerunMode
    from megatron.training import initialize

    upstream = initialize.initialize_rerun_state_machine

    def set_up(**settings: Any) -> None:
        upstream(**{**settings, "mode": RerunMode.REPORT_DETERMINISM_STATS})

    initialize.initialize_rerun_state_machine = set_up
