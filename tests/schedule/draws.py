"""Schedules drawn at random for property tests."""

import dataclasses
from collections.abc import Callable
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_compete.schedule import CompetitionSchedule
from megatron_compete.schedule.balanced import StageChunk
from megatron_compete.schedule.table import POLICIES


def of_draws(most: int, *strategies: st.SearchStrategy) -> Callable[[Callable[..., None]], Callable[[int], None]]:
    """A test of what holds for whatever the strategies draw: for a tenth of `most` draws in `make test`, for `most` in
    `make test-slow`."""

    def decorate(holds: Callable[..., None]) -> Callable[[int], None]:
        @pytest.mark.parametrize("draws", [most // 10, pytest.param(most, marks=pytest.mark.slow)])
        def test(draws: int) -> None:
            settings(max_examples=draws, deadline=None)(given(*strategies)(holds))()

        test.__name__, test.__doc__, test.__module__ = holds.__name__, holds.__doc__, holds.__module__
        return test

    return decorate


@st.composite
def placements(
    draw: st.DrawFn, max_stages: int = 8, max_chunks: int = 3, max_layers: int = 5
) -> tuple[StageChunk, ...]:
    """Stage and chunk of each layer in order of depth, slots of unequal sizes, some of them empty."""
    num_stages = draw(st.integers(1, max_stages))
    sizes = draw(st.lists(st.lists(st.integers(0, max_layers), min_size=num_stages, max_size=num_stages), min_size=1, max_size=max_chunks))  # fmt: skip
    stage_chunks = (((stage, at),) * size for at, chunk in enumerate(sizes) for stage, size in enumerate(chunk))
    return tuple(chain.from_iterable(stage_chunks)) or ((0, 0),)


def slots(stages: int, chunks: int = 1, layers: int = 1) -> tuple[StageChunk, ...]:
    """Stages and chunks of a pipeline with as many layers in every slot."""
    return tuple((stage, chunk) for chunk in range(chunks) for stage in range(stages) for _ in range(layers))


@st.composite
def schedules(draw: st.DrawFn, most_load: float = 1.0, decays: bool | None = None) -> CompetitionSchedule:
    """Any schedule with rate * layers <= most_load * A_max; its rate may fall, does not, or does."""
    stage_chunks = draw(placements())
    layers = len(stage_chunks)
    policy = draw(st.sampled_from(POLICIES))
    max_active = layers + draw(st.integers(0, 2)) if policy == "bernoulli" else draw(st.integers(1, layers + 2))
    most = min(1.0, most_load * max_active / layers)
    rate = draw(st.one_of(st.floats(0.0, most), st.just(most)))
    schedule = CompetitionSchedule(
        layers, rate, max_active, policy, stage_chunks, seed=draw(st.integers(-5, 2**40)), warmup_steps=draw(st.integers(0, 300))
    )  # fmt: skip
    if decays is None:
        decays = draw(st.booleans())
    if not decays:
        return schedule
    return dataclasses.replace(
        schedule,
        decay=draw(st.sampled_from(("linear", "cosine"))),
        decay_steps=draw(st.integers(1, 2000)),
        floor=draw(st.floats(0.0, rate)),
    )


def copy_of(schedule: CompetitionSchedule) -> CompetitionSchedule:
    """The same schedule as another process would make it: nothing drawn yet."""
    return CompetitionSchedule.from_settings(schedule.settings())
