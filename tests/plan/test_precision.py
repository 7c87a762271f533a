from megatron_compete.plan.precision import fp8_bytes, gathered_bytes, linear_input_bytes, linear_weight_bytes
from tests.plan.jobs import job_of

GATHER = "--use-distributed-optimizer --fp8-param-gather"


def test_bytes_of_an_element_by_format() -> None:
    bf16, mxfp8, blockwise, delayed = (
        job_of(f"--bf16 {flags}")
        for flags in ("", *(f"--fp8-format e4m3 --fp8-recipe {recipe}" for recipe in ("mxfp8", "blockwise", "delayed")))
    )
    assert [fp8_bytes(job) for job in (mxfp8, blockwise, delayed)] == [1 + 1 / 32, 1 + 4 / 128, 1.0]
    assert linear_input_bytes(bf16) == 2.0 and linear_input_bytes(mxfp8) == 1 + 1 / 32
    assert linear_weight_bytes(bf16) == 2.0
    assert linear_weight_bytes(delayed) == 2 + 2 * 1.0  # the bf16 weight, and both copies that are multiplied


def test_fp8_parameters_leave_the_copies_alone() -> None:
    blockwise, mxfp8 = (
        job_of(f"--bf16 --fp8-format e4m3 --fp8-recipe {recipe} {GATHER} {more} --router topk")
        for recipe, more in (("blockwise", ""), ("mxfp8", "--reuse-grad-buf-for-mxfp8-param-ag --overlap-param-gather --overlap-grad-reduce"))
    )  # fmt: skip
    assert linear_weight_bytes(blockwise) == 2 * (1 + 4 / 128)
    assert gathered_bytes(blockwise) == 1 + 4 / 128
    assert gathered_bytes(mxfp8) == 2.0  # quantised on arrival
