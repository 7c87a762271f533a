"""What `balanced` promises about the pipeline."""

import math
from itertools import combinations_with_replacement

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_compete.schedule import CompetitionSchedule
from megatron_compete.schedule.balanced import BalancedDraw, StageChunk
from tests.schedule.draws import placements, slots

Places = tuple[StageChunk, ...]


def loads(table: np.ndarray, places: Places) -> np.ndarray:
    """Competing layers of each stage, [steps, stages]."""
    stages = np.array([stage for stage, _ in places])
    return np.stack([table[:, stages == stage].sum(axis=1) for stage in sorted(set(stages.tolist()))], axis=1)


@st.composite
def balanced(draw: st.DrawFn) -> CompetitionSchedule:
    places = draw(placements())
    max_active = draw(st.integers(1, len(places)))
    rate = draw(st.floats(0.0, 1.0)) * max_active / len(places)
    return CompetitionSchedule(len(places), rate, max_active, "balanced", places, seed=draw(st.integers(0, 99)))


@settings(max_examples=2000, deadline=None)
@given(balanced())
def test_stages_share_a_step_whenever_the_draws_allow(schedule: CompetitionSchedule) -> None:
    """At most ceil(A_max / stages) on one, unless some stage's layers cannot compete at the rate that way."""
    sizes = np.bincount([stage for stage, _ in schedule.places])
    sizes = sizes[sizes > 0]
    share = math.ceil(schedule.max_active / len(sizes))
    rounds = math.ceil(schedule.rate * schedule.window_steps)
    together = min(schedule.max_active, np.minimum(sizes, share).sum())
    allowed = (rounds * sizes).max() <= schedule.window_steps * share
    allowed &= rounds * sizes.sum() <= schedule.window_steps * together
    table = schedule.table(0, 2 * schedule.window_steps)
    most = loads(table, schedule.places).max()
    if allowed:
        assert most <= share
    if len(set(sizes)) == 1:
        assert allowed  # with even stages the draws always allow it


def test_slots_that_ask_for_more_than_their_stage_gives() -> None:
    """At full load on uneven stages the slots' own shares may not fit: no step may go above its level for them."""
    sizes = ((1, 2, 3, 2), (3, 1, 0, 2))
    places = tuple(
        (stage, chunk) for chunk, row in enumerate(sizes) for stage, size in enumerate(row) for _ in range(size)
    )
    draw = BalancedDraw(14, 12, places)
    counts = draw.counts(12)
    table = draw.draw(np.random.default_rng(0), 12)
    most = loads(table, places).max(axis=1)
    assert (table.sum(axis=0) == 12).all() and table.sum(axis=1).max() <= 12
    assert most.max() == counts.level == 4 and (most == 4).sum() <= counts.high_steps


@settings(max_examples=1000, deadline=None)
@given(placements(max_stages=4, max_layers=3), st.integers(0, 2**32), st.data())
def test_level_and_slow_steps_are_the_fewest(places: Places, seed: int, data: st.DataObject) -> None:
    """With one slow step less there is no table, whatever its order; the one drawn has no more."""
    max_active = data.draw(st.integers(1, len(places)))
    steps = len(places)
    rounds = data.draw(st.integers(0, steps * max_active // len(places)))
    draw = BalancedDraw(steps, max_active, places)
    counts = draw.counts(rounds)
    np.testing.assert_array_equal(counts.high + counts.low, rounds * draw.stages.sizes)
    table = draw.draw(np.random.default_rng(seed), rounds)
    assert (table.sum(axis=0) == rounds).all() and table.sum(axis=1).max() <= max_active
    if counts.level == 0:
        assert rounds == 0
        return
    most = loads(table, places).max(axis=1)
    assert most.max() == counts.level and (most == counts.level).sum() <= counts.high_steps
    assert has_room(draw, rounds, counts.level, counts.high_steps)
    assert not has_room(draw, rounds, counts.level, counts.high_steps - 1)


def has_room(draw: BalancedDraw, rounds: int, level: int, high_steps: int) -> bool:
    """Whether a table exists, as a flow over each single step: source, steps, stages, sink."""
    graph = nx.DiGraph()
    for step in range(draw.steps):
        most = level if step < high_steps else level - 1
        graph.add_edge("source", step, capacity=draw.max_active)
        for stage, size in enumerate(draw.stages.sizes.tolist()):
            graph.add_edge(step, f"stage {stage}", capacity=min(size, most))
    for stage, size in enumerate(draw.stages.sizes.tolist()):
        graph.add_edge(f"stage {stage}", "sink", capacity=rounds * size)
    return nx.maximum_flow_value(graph, "source", "sink") == rounds * int(draw.stages.sizes.sum())


@pytest.mark.parametrize("chunks", (1, 3))
@pytest.mark.parametrize("stages, layers", combinations_with_replacement((2, 3, 4, 8), 2))
def test_competitions_of_different_stages_coincide(stages: int, layers: int, chunks: int) -> None:
    """At one layer a stage the slow steps are as few as can be: a window's competitions over A_max a step."""
    places = slots(stages, chunks, layers)
    schedule = CompetitionSchedule(len(places), 1 / (4 * layers * chunks), stages, "balanced", places)
    table = schedule.table(0, schedule.window_steps)
    assert loads(table, places).max() == 1
    assert (table.sum(axis=1) > 0).sum() == math.ceil(table.sum() / stages)


@pytest.mark.parametrize("max_active", (2, 3, 4, 8))
def test_neighbours_in_depth_compete_together(max_active: int) -> None:
    """Slots in a row, from the last chunk's end to the first one's beginning if need be."""
    places = slots(stages=8, chunks=3, layers=2)
    schedule = CompetitionSchedule(len(places), 0.03, max_active, "balanced", places)
    table = schedule.table(0, 10 * schedule.window_steps)
    for row in table[table.sum(axis=1) == max_active]:
        taken = np.flatnonzero(row.reshape(24, 2).any(axis=1))
        gaps = np.diff(taken, append=taken[0] + 24)
        assert sorted(gaps)[:-1] == [1] * (max_active - 1)


def test_neighbours_also_where_a_stage_takes_two() -> None:
    """Three layers at each step over two stages: three slots in a row."""
    places = slots(stages=2, chunks=4, layers=6)
    schedule = CompetitionSchedule(48, 3 / 48, 3, "balanced", places)
    for row in schedule.table(0, 10 * schedule.window_steps):
        taken = np.flatnonzero(row.reshape(8, 6).any(axis=1))
        assert len(taken) == 3
        assert sorted(np.diff(taken, append=taken[0] + 8)) == [1, 1, 6]


@pytest.mark.parametrize("places", [((0, 0), (0, 0), (0, 0), (0, 0), (1, 0), (0, 1), (1, 1), (1, 1))])
def test_shares_that_do_not_suit_the_slots_fall_back(places: Places) -> None:
    """At every load the table is whole, also where a stage's share cannot be had from its slots in a row."""
    for max_active in range(1, len(places) + 1):
        draw = BalancedDraw(24, max_active, places)
        for rounds in range(24 * max_active // len(places) + 1):
            draw.neighbours = lambda rounds, start: None
            table = draw.draw(np.random.default_rng(0), rounds)
            assert (table.sum(axis=0) == rounds).all() and table.sum(axis=1).max() <= max_active
            assert loads(table, places).max(axis=1).max() == draw.counts(rounds).level


def test_where_a_step_begins_in_depth_is_drawn() -> None:
    """Over many windows every pair of neighbours meets, and every layer of a slot meets every one of the next."""
    places = slots(stages=6, layers=4)
    table = CompetitionSchedule(24, 0.1, 3, "balanced", places).table(0, 400_000).astype(float)
    together = table.T @ table
    by_distance = [np.concatenate([together[i, 4 * ((i // 4 + d) % 6) :][:4] for i in range(24)]) for d in (1, 2)]
    for counts in by_distance:
        assert counts.max() < 1.2 * counts.mean() and counts.min() > 0.8 * counts.mean()


def test_stages_may_have_any_numbers() -> None:
    one = CompetitionSchedule(4, 0.2, 2, "balanced", slots(2, layers=2)).table(0, 300)
    other = CompetitionSchedule(4, 0.2, 2, "balanced", ((5, 0), (5, 0), (9, 0), (9, 0))).table(0, 300)
    np.testing.assert_array_equal(one, other)
