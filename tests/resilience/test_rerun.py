"""A step that is run twice begins with the same running statistics twice."""

import inspect

import torch
from megatron.core.rerun_state_machine import RerunStateMachine
from megatron.training import initialize

from megatron_compete.resilience.rerun import Statistics


class Layer(torch.nn.Module):
    """Stands in for running statistics: one buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2))


def test_statistics_are_as_they_were_when_the_step_began() -> None:
    layers = [Layer(), Layer()]
    statistics = Statistics(layers)  # type: ignore[arg-type]
    layers[0].mean += 1
    statistics.save()
    for layer in layers:
        layer.mean += 5
    statistics.restore()
    assert [layer.mean.tolist() for layer in layers] == [[1, 1], [0, 0]]


def test_upstream_still_winds_back_no_buffers() -> None:
    """Its own state is that of random generators, and so is what its trainer adds."""
    saves = inspect.getsource(RerunStateMachine._save_state)
    assert "rng_state" in saves and "buffer" not in saves
    adds = inspect.getsource(initialize)
    assert "rng_tracker_states" in adds and "buffers()" not in adds
