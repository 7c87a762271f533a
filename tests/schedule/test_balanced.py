"""What `balanced` promises about pipeline stages."""

import math
from itertools import combinations_with_replacement

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_compete.schedule import CompetitionSchedule
from megatron_compete.schedule.balanced import BalancedDraw
from tests.schedule.draws import placements


def loads(table: np.ndarray, stages: tuple[int, ...]) -> np.ndarray:
    """Competing layers of each stage, [steps, stages]."""
    return np.stack([table[:, np.array(stages) == stage].sum(axis=1) for stage in sorted(set(stages))], axis=1)


@st.composite
def balanced(draw: st.DrawFn) -> CompetitionSchedule:
    stages = draw(placements())
    max_active = draw(st.integers(1, len(stages)))
    rate = draw(st.floats(0.0, 1.0)) * max_active / len(stages)
    return CompetitionSchedule(len(stages), rate, max_active, "balanced", stages, seed=draw(st.integers(0, 99)))


@settings(max_examples=2000, deadline=None)
@given(balanced())
def test_stages_share_a_step_whenever_the_draws_allow(schedule: CompetitionSchedule) -> None:
    """At most ceil(A_max / stages) on one, unless some stage's layers cannot compete at the rate that way."""
    sizes = np.bincount(schedule.stages)
    sizes = sizes[sizes > 0]
    share = math.ceil(schedule.max_active / len(sizes))
    rounds = math.ceil(schedule.rate * schedule.window_steps)
    together = min(schedule.max_active, np.minimum(sizes, share).sum())
    allowed = (rounds * sizes).max() <= schedule.window_steps * share
    allowed &= rounds * sizes.sum() <= schedule.window_steps * together
    table = schedule.table(0, 2 * schedule.window_steps)
    most = loads(table, schedule.stages).max()
    if allowed:
        assert most <= share
    if len(set(sizes)) == 1:
        assert allowed  # with even stages the draws always allow it


@settings(max_examples=1000, deadline=None)
@given(placements(max_stages=4, max_layers=3), st.data())
def test_level_and_slow_steps_are_the_fewest(stages: tuple[int, ...], data: st.DataObject) -> None:
    """With one slow step less there is no table, whatever its order."""
    max_active = data.draw(st.integers(1, len(stages)))
    steps = len(stages)
    rounds = data.draw(st.integers(0, steps * max_active // len(stages)))
    draw = BalancedDraw(steps, max_active, stages)
    counts = draw.counts(rounds)
    np.testing.assert_array_equal(counts.high + counts.low, rounds * draw.sizes)
    if counts.level == 0:
        assert rounds == 0
        return
    assert has_room(draw, rounds, counts.level, counts.high_steps)
    assert not has_room(draw, rounds, counts.level, counts.high_steps - 1)


def has_room(draw: BalancedDraw, rounds: int, level: int, high_steps: int) -> bool:
    """Whether a table exists, as a flow over each single step: source, steps, stages, sink."""
    graph = nx.DiGraph()
    for step in range(draw.steps):
        most = level if step < high_steps else level - 1
        graph.add_edge("source", step, capacity=draw.max_active)
        for stage, size in enumerate(draw.sizes.tolist()):
            graph.add_edge(step, f"stage {stage}", capacity=min(size, most))
    for stage, size in enumerate(draw.sizes.tolist()):
        graph.add_edge(f"stage {stage}", "sink", capacity=rounds * size)
    return nx.maximum_flow_value(graph, "source", "sink") == rounds * int(draw.sizes.sum())


@pytest.mark.parametrize("num_stages, per_stage", combinations_with_replacement((2, 3, 4, 8), 2))
def test_competitions_of_different_stages_coincide(num_stages: int, per_stage: int) -> None:
    """At one layer a stage the slow steps are as few as can be: a window's competitions over A_max a step."""
    stages = tuple(np.repeat(np.arange(num_stages), per_stage).tolist())
    max_active = num_stages
    schedule = CompetitionSchedule(len(stages), 1 / (4 * per_stage), max_active, "balanced", stages)
    table = schedule.table(0, schedule.window_steps)
    assert loads(table, stages).max() == 1
    assert (table.sum(axis=1) > 0).sum() == math.ceil(table.sum() / max_active)


def test_pairs_of_stages_meet_alike() -> None:
    stages = tuple(n // 4 for n in range(24))
    table = CompetitionSchedule(24, 0.1, 3, "balanced", stages).table(0, 400_000)
    by_stage = loads(table, stages).astype(float)
    together = by_stage.T @ by_stage
    off_diagonal = together[~np.eye(6, dtype=bool)]
    assert off_diagonal.max() < 1.15 * off_diagonal.mean() and off_diagonal.min() > 0.85 * off_diagonal.mean()


def test_stages_may_have_any_numbers() -> None:
    one = CompetitionSchedule(4, 0.2, 2, "balanced", (0, 0, 1, 1)).table(0, 300)
    other = CompetitionSchedule(4, 0.2, 2, "balanced", (5, 5, 9, 9)).table(0, 300)
    np.testing.assert_array_equal(one, other)
