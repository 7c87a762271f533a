"""The schedule's promises over drawn configurations."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_compete.errors import CompeteError
from megatron_compete.schedule import CompetitionSchedule


@st.composite
def schedules(draw: st.DrawFn) -> CompetitionSchedule:
    layers = draw(st.integers(1, 48))
    max_active = draw(st.integers(1, layers + 2))
    rate = draw(st.floats(0.0, min(1.0, max_active / layers)))
    warmup = draw(st.integers(0, 300))
    return CompetitionSchedule(layers, rate, max_active, seed=draw(st.integers(-5, 2**40)), warmup_steps=warmup)


@settings(max_examples=150, deadline=None)
@given(schedules(), st.integers(0, 5000))
def test_never_more_than_max_active_and_none_in_warmup(schedule: CompetitionSchedule, start: int) -> None:
    table = schedule.table(start, start + 700)
    assert table.sum(axis=1).max(initial=0) <= schedule.max_active
    assert not table[: max(0, schedule.warmup_steps - start)].any()


@settings(max_examples=150, deadline=None)
@given(schedules())
def test_layers_compete_equally_often_at_the_rate(schedule: CompetitionSchedule) -> None:
    windows = 8
    steps = windows * schedule.window_steps
    counts = schedule.table(schedule.warmup_steps, schedule.warmup_steps + steps).sum(axis=0)
    assert counts.min() == counts.max() == math.floor(schedule.rate * steps + 1e-6)


@settings(max_examples=60, deadline=None)
@given(schedules(), st.integers(0, 20_000), st.integers(0, 900))
def test_any_step_is_the_same_by_any_path(schedule: CompetitionSchedule, start: int, length: int) -> None:
    whole = schedule.table(start, start + length)
    again = CompetitionSchedule(
        schedule.num_layers, schedule.rate, schedule.max_active, schedule.seed, schedule.warmup_steps
    )
    for step in range(start, start + length, 97):
        row = [again.is_active(step, layer) for layer in range(1, schedule.num_layers + 1)]
        assert row == whole[step - start].tolist()
    np.testing.assert_array_equal(whole[length // 2 :], again.table(start + length // 2, start + length))


def test_other_seeds_give_other_tables() -> None:
    tables = [CompetitionSchedule(8, 0.2, 3, seed=seed).table(0, 500) for seed in range(3)]
    assert not any(np.array_equal(a, b) for a, b in ((tables[0], tables[1]), (tables[1], tables[2])))


def test_all_layers_share_the_places_alike() -> None:
    """No pair of layers meets much more often than another: the order of the layers plays no part."""
    table = CompetitionSchedule(8, 0.2, 3).table(0, 40_000).astype(float)
    together = table.T @ table
    off_diagonal = together[~np.eye(8, dtype=bool)]
    assert off_diagonal.max() < 1.15 * off_diagonal.mean() and off_diagonal.min() > 0.85 * off_diagonal.mean()


def test_an_impossible_rate_names_both_ways_out() -> None:
    with pytest.raises(CompeteError, match=r"0.07 \* 64 = 4.48: raise it to 5 or lower --compete-rate to 0.0468"):
        CompetitionSchedule(num_layers=64, rate=0.07, max_active=3)
    CompetitionSchedule(num_layers=64, rate=0.0468, max_active=3)
    CompetitionSchedule(num_layers=64, rate=0.07, max_active=5)


@pytest.mark.parametrize(
    "arguments", [dict(rate=-0.1), dict(rate=1.1), dict(max_active=0), dict(num_layers=0)], ids=str
)
def test_values_out_of_range_are_refused(arguments: dict) -> None:
    with pytest.raises(CompeteError):
        CompetitionSchedule(**(dict(num_layers=4, rate=0.1, max_active=2) | arguments))


def test_layers_are_numbered_from_one() -> None:
    schedule = CompetitionSchedule(4, 0.5, 2)
    for layer in (0, 5):
        with pytest.raises(IndexError):
            schedule.is_active(0, layer)
