"""TensorBoard's curve of a resumed run: steps that were logged after its checkpoint are not shown twice.

A job that goes on from iteration N logs N + 1 anew, into another event file of the same folder. TensorBoard's files have a
mark for that, the start of a session (torch's `SummaryWriter(purge_step=...)` writes it): what earlier files hold at
its step or later is hidden. Megatron's writer, which our scalars go through as well, is made before N is known.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from megatron.training import get_args, get_tensorboard_writer, training
from tensorboard.compat.proto.event_pb2 import Event, SessionLog


def start_session(writer: Any, first_step: int) -> None:
    """Let `writer`, a `SummaryWriter`, say that its session begins with `first_step`."""
    log = SessionLog(status=SessionLog.START)
    writer.file_writer.add_event(Event(step=first_step, session_log=log))


@contextlib.contextmanager
def one_curve() -> Iterator[None]:
    """While Megatron's trainer runs, let its writer start a session before the first step.

    It writes its arguments there, when the checkpoint's iteration is known and before anything else is written.
    """
    upstream: Callable[[], None] = training.write_args_to_tensorboard

    def write() -> None:
        writer = get_tensorboard_writer()
        if writer is not None:  # the last rank's
            start_session(writer, get_args().iteration + 1)
        upstream()

    training.write_args_to_tensorboard = write
    try:
        yield
    finally:
        training.write_args_to_tensorboard = upstream
