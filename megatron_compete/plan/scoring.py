"""Which kernels a job's scoring pass runs in, and what these leave in memory (`moe/kernels/`)."""

from typing import Literal

from megatron_compete.moe.kernels.coverage import NotCovered, expert_form
from megatron_compete.plan.hardware import Hardware
from megatron_compete.plan.job import Job

Kernel = Literal["fused", "fused-fp8", "plain"]

ON_CHIP_WIDTH = 256
"""Widest hidden layer that stays on chip (`moe/kernels/narrow.py`)."""

SCRATCH_BYTES = 256 * 2**20
"""Of the hidden layer of wider experts (`moe/kernels/wide.py`)."""


def scoring_kernel(job: Job, hardware: Hardware | None = None) -> Kernel:
    """What `--compete-score-kernel` comes to: auto takes the fused kernels where they cover experts and GPU.

    Args:
        hardware: None: one that they run on (Hopper or newer, which has FP8).
    """
    choice = job.compete.score_kernel if job.compete is not None else "plain"
    if choice != "auto":
        return choice
    if (hardware is not None and hardware.fp8_flops is None) or job.args.fp8_param_gather:
        return "plain"
    try:
        expert_form(job.transformer)
    except NotCovered:
        return "plain"
    return "fused"


def fused_buffer_bytes(job: Job) -> float:
    """What the fused kernels write of one token between an expert's matrices: narrow experts nothing."""
    assert job.compete is not None
    if job.expert_ffn <= ON_CHIP_WIDTH:
        return 0.0
    chunk = min(job.compete.score_chunk_tokens, job.competing_tokens) * job.sizes.ep * job.sizes.etp
    return min(float(job.expert_ffn * job.element_bytes), SCRATCH_BYTES / chunk)
