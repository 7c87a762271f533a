"""TensorBoard's curves of a resumed run: steps that were logged after its checkpoint are not shown twice.

A job that goes on from iteration N logs N + 1 anew, into another event file of the same folder. TensorBoard's files have a
mark for that, the start of a session (torch's `SummaryWriter(purge_step=...)` writes it): what earlier files of the folder
hold at its step or later is hidden, whatever the scalar. Megatron's writer, which our scalars go through as well, is made
before N is known.

Megatron logs some scalars a second time by the number of samples (`lm loss vs samples`). A mark in iterations would hide
those of most of the run, so they have a folder of their own, `samples` below --tensorboard-dir, with its own mark.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from megatron.training import get_args, get_tensorboard_writer, training
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch.utils.tensorboard import SummaryWriter

BY_SAMPLES = " vs samples"
"""How the names of Megatron's scalars by samples end."""
SAMPLES = "samples"
"""Folder of these, beside the event files of the others."""


def start_session(writer: Any, first_step: int) -> None:
    """Let `writer`, a `SummaryWriter`, say that its session begins with `first_step`."""
    log = SessionLog(status=SessionLog.START)
    writer.file_writer.add_event(Event(step=first_step, session_log=log))


def write_samples_apart(writer: SummaryWriter, first_sample: int) -> SummaryWriter:
    """Have `writer` pass its scalars by samples to a writer of its own, whose session begins with `first_sample`.

    Returns:
        That writer.
    """
    samples = SummaryWriter(os.path.join(writer.log_dir, SAMPLES), purge_step=first_sample)
    add_scalar, flush = writer.add_scalar, writer.flush

    def add(tag: str, *args: Any, **named: Any) -> None:
        (samples.add_scalar if tag.endswith(BY_SAMPLES) else add_scalar)(tag, *args, **named)

    def flush_both() -> None:
        flush()
        samples.flush()

    writer.add_scalar, writer.flush = add, flush_both  # type: ignore[method-assign]
    return samples


@contextlib.contextmanager
def one_curve() -> Iterator[None]:
    """While Megatron's trainer runs, let its writer start a session before the first step.

    It writes its arguments there, when the checkpoint's iteration is known and before anything else is written.
    """
    upstream: Callable[[], None] = training.write_args_to_tensorboard
    opened: list[SummaryWriter] = []

    def write() -> None:
        writer = get_tensorboard_writer()
        if writer is not None:  # the last rank's
            start_session(writer, get_args().iteration + 1)
            opened.append(write_samples_apart(writer, get_args().consumed_train_samples + 1))
        upstream()

    training.write_args_to_tensorboard = write
    try:
        yield
    finally:
        training.write_args_to_tensorboard = upstream
        for writer in opened:
            writer.close()
