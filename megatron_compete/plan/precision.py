"""Bytes of an element in FP8 training.

FP8 formats differ in their scales: MXFP8 has one of a byte for 32 elements, blockwise scaling an fp32 for 128, delayed and
tensorwise scaling one for a tensor (Transformer Engine's `common.recipe`). Products in the forward and in the backward
pass read a matrix along different axes, so weights are held twice.
"""

from megatron_compete.plan.job import Job

SCALES = {"mxfp8": 1 / 32, "blockwise": 4 / 128}
"""Bytes of scales for an element."""

COPIES = 2
"""Of a weight in FP8: along its rows and along its columns."""


def fp8_bytes(job: Job) -> float:
    """Bytes of an element in the job's FP8 format."""
    return 1.0 + SCALES.get(job.transformer.fp8_recipe, 0.0)


def linear_input_bytes(job: Job) -> float:
    """Of what a linear layer keeps of its input for its backward pass: in FP8 the quantised copy."""
    return fp8_bytes(job) if job.transformer.fp8 else float(job.element_bytes)


def linear_weight_bytes(job: Job) -> float:
    """Of a linear layer's weight: what is trained, and under FP8 the copies that are multiplied. With
    `--fp8-param-gather` these alone are there."""
    if not job.transformer.fp8:
        return float(job.element_bytes)
    copies = COPIES * fp8_bytes(job)
    return copies if job.args.fp8_param_gather else job.element_bytes + copies


def gathered_bytes(job: Job) -> float:
    """Of a linear layer's new weight as the distributed optimizer sends it. MXFP8's is sent in bf16 and quantised on
    arrival (`--reuse-grad-buf-for-mxfp8-param-ag`), for its two copies do not follow from one another."""
    in_fp8 = job.transformer.fp8 and job.args.fp8_param_gather and job.transformer.fp8_recipe != "mxfp8"
    return fp8_bytes(job) if in_fp8 else float(job.element_bytes)
