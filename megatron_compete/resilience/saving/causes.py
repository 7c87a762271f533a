"""Why a checkpoint's shards could not be written, in the system's words, from whichever thread or process met it.

Two things hide them. On a full disk torch's archive writer, as it closes, raises "unexpected pos 704 vs 598" over the
system's error, which stays behind as the context. And Megatron hands on the type of what a writer raised, not its
words; of a writer thread nothing at all.
"""

import functools
import os
import queue
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from megatron_compete.upstream import wrap_symbol

Write = Callable[..., None]
"""Megatron's `write_preloaded_data_multithread`: (rank, buckets, results) -> None."""


def naming_causes(upstream: Callable[[Any], tuple[Write | None, Any, list[Any]]], writer: Any, /) -> tuple[Write | None, Any, list[Any]]:  # fmt: skip
    """Around `FileSystemWriterAsync.get_save_function_and_args`: what writes the shards then names the cause.

    The function that it returns goes to where shards are written: this process, a forked or a spawned one.
    """
    write, preload, arguments = upstream(writer)
    return write and functools.partial(write_shards, write), preload, arguments


def write_shards(write: Write, rank: int, buckets: list[Any], results: Any) -> None:
    """Write a rank's shards; put into `results` what was written, or a RuntimeError whose text is the cause."""
    causes: list[str] = []
    outcome: queue.SimpleQueue[Any] = queue.SimpleQueue()
    symbol = "megatron.core.dist_checkpointing.strategies.filesystem_async:FileSystemWriterAsync.write_preloaded_data"
    with wrap_symbol(symbol, _noting(causes)):
        try:
            write(rank, buckets, outcome)
        except AssertionError:  # is all that Megatron says of a thread's failure
            if not causes:
                raise
    results.put(RuntimeError(causes[0]) if causes else outcome.get())


def _noting(causes: list[str]) -> Callable[..., Any]:
    """Around `write_preloaded_data`, which hands its errors on as results: their causes are noted."""

    def write(upstream: Callable[..., Any], *args: Any, results_queue: Any = None, **named: Any) -> Any:
        outcome = upstream(*args, results_queue=None, **named)
        if isinstance(outcome[1], Exception):
            causes.append(cause(outcome[1]))
            _forget_frames(outcome[1])
        if results_queue is not None:  # of a thread; Megatron waits for it
            results_queue.put(outcome)
        return outcome

    return write


def cause(error: BaseException) -> str:
    """The first line of the system's error behind `error`, or else of `error` itself."""
    for one in _chain(error):
        if isinstance(one, OSError):
            return _line(str(one))
    return f"{type(error).__name__}: {_line(str(error))}"


def cause_of_rank(error: BaseException) -> str:
    """What a rank's writer said, out of what Megatron's `CheckpointException` keeps of it."""
    text = _line(str(error)).removeprefix("Worker failure: ")
    return "its writer ended before it was done" if text == "results_queue should not be empty" else text


def _line(text: str) -> str:
    return (text.splitlines() or [""])[0]


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and those it was raised from or over."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def _forget_frames(error: BaseException) -> None:
    """Free what the frames of a failed write hold.

    They hold the error, so only the garbage collector would free them; and up to Python 3.12.1 it crashes on the view of
    a buffer (`BytesIO.getbuffer`, python/cpython#111049) that torch was writing.
    """
    for one in _chain(error):
        if one.__traceback__ is not None:
            traceback.clear_frames(one.__traceback__)
            one.__traceback__ = None


def room(folder: Path) -> str:
    """What room the folder's file system has just now: what is seen, not what has been the cause."""
    seen = os.statvfs(folder)
    if seen.f_bavail == 0:
        return "its file system was found to be full"
    if seen.f_files and seen.f_favail == 0:
        return "its file system was found to have no room for another file"
    return f"{seen.f_bavail * seen.f_frsize / 1e6:.0f} MB were free"
