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

from megatron.training import get_args, get_tensorboard_writer
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch.utils.tensorboard import SummaryWriter

from megatron_compete.upstream import wrap_symbol

BY_SAMPLES = " vs samples"
"""How the names of Megatron's scalars by samples end."""
SAMPLES = "samples"
"""Folder of these, beside the event files of the others."""


def start_session(writer: Any, first_step: int) -> None:
    """Let `writer`, a `SummaryWriter`, say that its session begins with `first_step`."""
    log = SessionLog(status=SessionLog.START)
    writer.file_writer.add_event(Event(step=first_step, session_log=log))


@contextlib.contextmanager
def samples_apart(writer: SummaryWriter, first_sample: int) -> Iterator[None]:
    """Within it, `writer` passes its scalars by samples to a writer of their own, whose session begins with `first_sample`."""
    samples = SummaryWriter(os.path.join(writer.log_dir, SAMPLES), purge_step=first_sample)

    def add(upstream: Callable[..., None], tag: str, *args: Any, **named: Any) -> None:
        (samples.add_scalar if tag.endswith(BY_SAMPLES) else upstream)(tag, *args, **named)

    def flush(upstream: Callable[[], None]) -> None:
        upstream()
        samples.flush()

    with (
        contextlib.closing(samples),
        wrap_symbol("torch.utils.tensorboard:SummaryWriter.add_scalar", add, on=writer),
        wrap_symbol("torch.utils.tensorboard:SummaryWriter.flush", flush, on=writer),
    ):
        yield


@contextlib.contextmanager
def one_curve() -> Iterator[None]:
    """While Megatron's trainer runs, let its writer start a session before the first step.

    It writes its arguments there, when the checkpoint's iteration is known and before anything else is written.
    """
    with contextlib.ExitStack() as running:

        def write(upstream: Callable[[], None]) -> None:
            writer = get_tensorboard_writer()
            if writer is not None:  # the last rank's
                start_session(writer, get_args().iteration + 1)
                running.enter_context(samples_apart(writer, get_args().consumed_train_samples + 1))
            upstream()

        running.enter_context(wrap_symbol("megatron.training.training:write_args_to_tensorboard", write))
        yield
