"""What `shifted` keeps of the authors' procedure, against one that is written step by step."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_compete.schedule import CompetitionSchedule
from megatron_compete.schedule.shifted import Load, _as_table, _shift, draw_shifted


def as_bits(steps: np.ndarray) -> int:
    return sum(1 << int(step) for step in np.flatnonzero(steps))


@settings(max_examples=2000, deadline=None)
@given(st.integers(1, 40), st.data())
def test_surplus_moves_left_else_right(steps: int, data: st.DataObject) -> None:
    bits = st.lists(st.booleans(), min_size=steps, max_size=steps).map(np.array)
    draws, room = data.draw(bits), data.draw(bits)
    taken = draws & room
    for step in np.flatnonzero(draws & ~room):
        left = [other for other in range(step - 1, -1, -1) if room[other] and not taken[other]]
        right = [other for other in range(step + 1, steps) if room[other] and not taken[other]]
        if left or right:
            taken[(left or right)[0]] = True
    assert _shift(as_bits(draws), as_bits(room)) == as_bits(taken)


@settings(max_examples=500, deadline=None)
@given(st.integers(1, 9), st.integers(1, 30), st.data())
def test_load_counts_every_step(limit: int, steps: int, data: st.DataObject) -> None:
    load, counts = Load(steps, limit), np.zeros(steps, dtype=int)
    for _ in range(limit + 2):
        more = data.draw(st.lists(st.booleans(), min_size=steps, max_size=steps).map(np.array)) & (counts < limit)
        load.add(as_bits(more))
        counts += more
        assert load.room() == as_bits(counts < limit)


@settings(max_examples=1000, deadline=None)
@given(st.integers(1, 8), st.integers(1, 30), st.integers(0, 2**32), st.data())
def test_nothing_is_lost_at_full_load(layers: int, steps: int, seed: int, data: st.DataObject) -> None:
    """Every layer meets its number of competitions even where all places are taken in the end."""
    max_active = data.draw(st.integers(1, layers))
    rounds = steps * max_active // layers
    table = draw_shifted(np.random.default_rng(seed), steps, layers, rounds, max_active)
    assert (table.sum(axis=0) == rounds).all()
    assert table.sum(axis=1).max() <= max_active


def test_sets_and_tables() -> None:
    table = np.random.default_rng(0).random((300, 5)) < 0.3
    np.testing.assert_array_equal(_as_table([as_bits(column) for column in table.T], 300), table)


def test_layers_take_turns_in_random_order() -> None:
    """At full load those that draw last find the steps that are left; over many windows that is every layer's lot."""
    table = CompetitionSchedule(8, 0.25, 2, "shifted").table(0, 200_000).astype(float)
    together = table.T @ table
    pairs = together[~np.eye(8, dtype=bool)]
    assert pairs.max() < 1.2 * pairs.mean() and pairs.min() > 0.8 * pairs.mean()
