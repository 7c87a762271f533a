"""A step that Megatron runs twice must be the same step twice.

When a result is not a number, Megatron's rerun machine runs forward and backward once more to see whether the hardware
or the program is at fault. It winds back the random state and the data. The schedule follows from the iteration, so the
same layers compete; but running statistics (`--compete-response-centering ema`) have taken in the microbatches of the
first run. They are wound back here.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from megatron.core.rerun_state_machine import RerunMode, get_rerun_state_machine
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from megatron_compete.moe.centering import RunningCentering
from megatron_compete.upstream import wrap_symbol


def wind_back_statistics(model: list[MegatronModule], running: contextlib.ExitStack) -> list[MegatronModule]:
    """Let the rerun machine wind back running statistics; a hook that Megatron calls when the model is built.

    Args:
        running: closed when the run ends.
    """
    layers = [module for chunk in model for module in chunk.modules() if isinstance(module, RunningCentering)]
    machine = get_rerun_state_machine()
    if layers and machine.get_mode() != RerunMode.DISABLED:
        statistics = Statistics(layers)
        running.enter_context(
            wrap_symbol(
                "megatron.core.rerun_state_machine:RerunStateMachine._save_state", _after(statistics.save), on=machine
            )
        )
        running.enter_context(
            wrap_symbol(
                "megatron.core.rerun_state_machine:RerunStateMachine._restore_state",
                _after(statistics.restore),
                on=machine,
            )
        )
    return model


class Statistics:
    """The running statistics of all layers as they were when the step began."""

    def __init__(self, layers: list[RunningCentering]) -> None:
        self.layers = layers
        self.saved: list[Tensor] = []

    def save(self) -> None:
        """Note them; a few numbers an expert."""
        self.saved = [buffer.clone() for buffer in self._buffers()]

    def restore(self) -> None:
        """Put them back."""
        torch._foreach_copy_(self._buffers(), self.saved)

    def _buffers(self) -> list[Tensor]:
        return [buffer for layer in self.layers for buffer in layer.buffers()]


def _after(step: Callable[[], None]) -> Callable[..., Any]:
    def call(upstream: Callable[..., Any], *args: Any, **named: Any) -> Any:
        step()
        return upstream(*args, **named)

    return call
