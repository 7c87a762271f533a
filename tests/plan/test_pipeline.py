"""Simulated pipelines against closed forms and a plain event simulation."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_compete.plan import pipeline
from megatron_compete.plan.pipeline import compile_schedule, simulate
from megatron_compete.plan.stage_program import Operation, PipelineShape
from tests.plan.upstream_schedules import record


def alike(shape: PipelineShape, forward: float, backward: float, transfer: float = 0.0) -> float:
    """Seconds where all chunks take the same time."""
    ones = np.ones((1, shape.stages, shape.chunks))
    return float(simulate(shape, forward * ones, backward * ones, transfer)[0])


@pytest.mark.parametrize(("stages", "microbatches"), [(1, 7), (2, 1), (2, 8), (4, 3), (8, 64)])
def test_1f1b_of_equal_stages(stages: int, microbatches: int) -> None:
    shape = PipelineShape(stages, 1, microbatches, stages)
    assert alike(shape, 1.0, 2.5) == (microbatches + stages - 1) * 3.5


@pytest.mark.parametrize("overlap", [(False, False), (True, False), (True, True)], ids=("blocking", "overlap", "flush"))
@pytest.mark.parametrize(("stages", "chunks", "microbatches"), [(3, 2, 3), (4, 2, 8), (4, 5, 16), (8, 3, 24)])
def test_interleaving_divides_the_bubble_by_the_chunks(
    stages: int, chunks: int, microbatches: int, overlap: tuple[bool, bool]
) -> None:
    """Narayanan et al. 2021 (arXiv 2104.04473), section 2.2: a bubble of (P - 1) / V microbatches."""
    shape = PipelineShape(stages, chunks, microbatches, stages, *overlap)
    of_microbatch = chunks * 3.0
    assert alike(shape, 1.0, 2.0) == pytest.approx(of_microbatch * (microbatches + (stages - 1) / chunks), rel=1e-12)


def test_a_slow_stage_never_waits() -> None:
    """Before it comes the way of the first microbatch, behind it that of the last gradient."""
    stages, microbatches = 5, 9
    for slow in range(stages):
        forward_NPV = np.ones((1, stages, 1))
        backward_NPV = 2 * forward_NPV
        forward_NPV[0, slow], backward_NPV[0, slow] = 100.0, 200.0
        seconds = simulate(PipelineShape(stages, 1, microbatches, stages), forward_NPV, backward_NPV, 0.0)
        assert seconds[0] == slow * 3.0 + microbatches * 300.0


def test_transfers_of_1f1b_are_in_the_way() -> None:
    """One microbatch crosses P - 1 borders twice. Two on two stages: activations and gradients meet in one exchange."""
    assert alike(PipelineShape(4, 1, 1, 4), 1.0, 2.0, transfer=0.5) == 4 * 3.0 + 2 * 3 * 0.5
    assert alike(PipelineShape(2, 1, 2, 2), 1.0, 2.0, transfer=0.5) == 3 * 3.0 + 3 * 0.5


def test_overlapped_transfers_cost_less() -> None:
    blocking, overlapped = (alike(PipelineShape(4, 2, 16, 4, overlap), 1.0, 2.0, 0.2) for overlap in (False, True))
    hidden = alike(PipelineShape(4, 2, 16, 4, overlap=True), 1.0, 2.0)
    assert hidden < overlapped < blocking


def events(shape: PipelineShape, forward_PV: Any, backward_PV: Any, transfer: float, programs: list[Any]) -> float:
    """The same pipeline, one step and one operation at a time."""
    clocks = [0.0] * shape.stages
    todo = [list(program) for program in programs]
    posts: dict[tuple[str, int, int], list[float]] = {}
    while any(todo):
        before = sum(map(len, todo))
        for stage, operations in enumerate(todo):
            while operations and perform(operations[0], stage, shape, clocks, posts, forward_PV, backward_PV, transfer):
                operations.pop(0)
        assert sum(map(len, todo)) < before, "a circle"
    return max(clocks)


def perform(operation: Operation, stage: int, shape: PipelineShape, clocks: list[float], posts: Any, forward_PV: Any, backward_PV: Any, transfer: float) -> bool:  # fmt: skip
    """Whether the operation could be done."""
    if operation.action in ("forward", "backward"):
        clocks[stage] += (forward_PV if operation.action == "forward" else backward_PV)[stage, operation.chunk]
        return True
    side = {"send next": 0, "receive previous": -1, "send previous": 0, "receive next": 1}[operation.channel or ""]
    kind = "activations" if operation.channel in ("send next", "receive previous") else "gradients"
    ends = posts.setdefault((kind, (stage + side) % shape.stages, operation.number), [])
    if operation.action == "post":
        ends.append(clocks[stage])
        return True
    if len(ends) == 2:
        clocks[stage] = max(clocks[stage], max(ends) + transfer)
    return len(ends) == 2


@st.composite
def shapes(draw: st.DrawFn) -> PipelineShape:
    stages, chunks = draw(st.integers(2, 5)), draw(st.integers(1, 3))
    if chunks == 1:
        return PipelineShape(stages, 1, draw(st.integers(1, 12)), stages)
    group_size = draw(st.integers(stages, stages + 2))
    rest = draw(st.sampled_from([0, *range(stages, group_size)]))
    overlap, flush = draw(st.sampled_from([(False, False), (True, False), (True, True)]))
    return PipelineShape(stages, chunks, draw(st.integers(1, 3)) * group_size + rest, group_size, overlap, flush)


@settings(max_examples=60, deadline=None)
@given(shapes(), st.integers(0, 2**31), st.sampled_from([0.0, 0.3, 2.0]))
def test_equal_to_events_on_the_programs_of_megatrons_own_schedules(
    shape: PipelineShape, seed: int, transfer: float
) -> None:
    random = np.random.default_rng(seed)
    forward_NPV, backward_NPV = random.exponential(size=(2, 3, shape.stages, shape.chunks))
    programs = [record(shape, stage) for stage in range(shape.stages)]
    seconds = simulate(shape, forward_NPV, backward_NPV, transfer)
    for step in range(3):
        expected = events(shape, forward_NPV[step], backward_NPV[step], transfer, programs)
        assert seconds[step] == pytest.approx(expected, rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(shapes(), st.integers(0, 2**31))
def test_slower_parts_never_make_a_step_faster(shape: PipelineShape, seed: int) -> None:
    random = np.random.default_rng(seed)
    forward_NPV, backward_NPV = random.exponential(size=(2, 1, shape.stages, shape.chunks))
    more_NPV = random.exponential(size=(20, shape.stages, shape.chunks)) * (
        random.random((20, shape.stages, shape.chunks)) < 0.3
    )
    base = simulate(shape, forward_NPV, backward_NPV, 0.1)
    assert (simulate(shape, forward_NPV + more_NPV, backward_NPV + more_NPV, 0.1) >= base).all()
    assert simulate(shape, forward_NPV, backward_NPV, 0.2)[0] >= base[0]


def test_steps_do_not_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither inside a block of steps nor across blocks."""
    shape = PipelineShape(4, 2, 8, 4)
    forward_NPV, backward_NPV = np.random.default_rng(0).exponential(size=(2, 10, 4, 2))
    together = simulate(shape, forward_NPV, backward_NPV, 0.1)
    monkeypatch.setattr(pipeline, "BLOCK_STEPS", 3)
    np.testing.assert_array_equal(together, simulate(shape, forward_NPV, backward_NPV, 0.1))
    for step in range(10):
        alone = simulate(shape, forward_NPV[step : step + 1], backward_NPV[step : step + 1], 0.1)
        assert alone[0] == together[step]


def test_registers_are_used_again() -> None:
    compiled = compile_schedule(PipelineShape(8, 4, 64, 8))
    assert compiled.registers < 100 < len(compiled.code)


def test_stages_that_wait_in_a_circle_are_told() -> None:
    class Circle(PipelineShape):
        def program(self, stage: int) -> list[Operation]:
            return [Operation("wait", channel="receive previous"), Operation("post", channel="send next")]

    with pytest.raises(RuntimeError, match="in a circle"):
        compile_schedule(Circle(2, 1, 1, 2))
