"""The programs of the stages are those of Megatron's real schedules, operation for operation."""

import itertools

import pytest

from megatron_compete.plan.stage_program import PipelineShape
from tests.plan.upstream_schedules import record


@pytest.mark.parametrize(("stages", "microbatches"), itertools.product((2, 3, 5), (1, 2, 4, 9)))
def test_one_forward_one_backward(stages: int, microbatches: int) -> None:
    shape = PipelineShape(stages, 1, microbatches, group_size=stages)
    for stage in range(stages):
        assert shape.program(stage) == record(shape, stage)


@pytest.mark.parametrize("overlap", [(False, False), (True, False), (True, True)], ids=("blocking", "overlap", "flush"))
@pytest.mark.parametrize("chunks", (2, 3))
@pytest.mark.parametrize(("stages", "group_size"), [(2, 2), (2, 5), (3, 3), (4, 4), (4, 6)])
def test_interleaved(stages: int, group_size: int, chunks: int, overlap: tuple[bool, bool]) -> None:
    """Also with fewer microbatches than fill the warm-up, and with a last group that is not whole."""
    for microbatches in (group_size, group_size + stages, 2 * group_size, 3 * group_size + stages):
        if 0 < microbatches % group_size < stages:
            continue  # Megatron refuses it
        shape = PipelineShape(stages, chunks, microbatches, group_size, *overlap)
        for stage in range(stages):
            assert shape.program(stage) == record(shape, stage), (shape, stage)


def test_every_microbatch_passes_every_chunk_once_in_each_direction() -> None:
    shape = PipelineShape(4, 3, 12, 4)
    for stage in range(4):
        passes = [operation for operation in shape.program(stage) if operation.action in ("forward", "backward")]
        assert len(passes) == 2 * 3 * 12
        for action, chunk in itertools.product(("forward", "backward"), range(3)):
            assert sum(1 for operation in passes if operation[:2] == (action, chunk)) == 12
