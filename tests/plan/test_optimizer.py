import pytest

from megatron_compete.plan.groups import Groups
from megatron_compete.plan.hardware import preset
from megatron_compete.plan.job import Job
from megatron_compete.plan.layer_times import LayerTimes
from megatron_compete.plan.optimizer import state_bytes, update_seconds
from megatron_compete.plan.tensors import Tensors
from tests.plan.jobs import job_of

MATRIX, VECTOR = (Tensors("mlp", 1024),), (Tensors("norm", 1024),)


def test_precision_aware_optimizer() -> None:
    """Moments of a byte each and 16 bits that complete the bf16 weight; without remainders an fp32 copy."""
    flags = "--bf16 --use-distributed-optimizer --use-precision-aware-optimizer"
    for more, expected in (
        (flags, 4 + 4 + 2),
        (f"{flags} --exp-avg-dtype fp8 --exp-avg-sq-dtype bf16", 1 + 2 + 2),
        (f"{flags} --main-params-dtype fp16", 4 + 4 + 2),
        (f"{flags} --fp8-format e4m3 --fp8-recipe blockwise --fp8-param-gather --router topk", 4 + 4 + 4),
        ("--bf16", 12),
        ("", 8),
    ):
        assert state_bytes(job_of(more), MATRIX) == expected, more


@pytest.mark.parametrize(("optimizer", "matrix", "vector"), [("muon", 8, 12), ("lion", 8, 8), ("sgd", 8, 8)])
def test_other_optimizers(optimizer: str, matrix: int, vector: int) -> None:
    job = job_of(f"--bf16 --optimizer {optimizer}")
    assert (state_bytes(job, MATRIX), state_bytes(job, VECTOR)) == (matrix, vector)
    assert state_bytes(job, MATRIX + VECTOR) == (matrix + vector) / 2


OFFLOAD = "--bf16 --use-distributed-optimizer --optimizer-cpu-offload --use-precision-aware-optimizer"


def test_an_offloaded_share_is_on_the_host_and_takes_its_time() -> None:
    half, none = job_of(f"{OFFLOAD} --optimizer-offload-fraction 0.5"), job_of("--bf16 --use-distributed-optimizer")
    assert state_bytes(half, MATRIX) == 0.5 * 10
    assert seconds(half) > 2 * seconds(none)


def test_muon_multiplies() -> None:
    wide = "--bf16 --hidden-size 4096"
    assert seconds(job_of(f"{wide} --optimizer muon")) > 5 * seconds(job_of(wide))


def seconds(job: Job) -> float:
    layers = LayerTimes(job, preset("h100"), Groups(job))
    return update_seconds(job, layers, (Tensors("mlp", 4096 * 4096),), ranks=1)
