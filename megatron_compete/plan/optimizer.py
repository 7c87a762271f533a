"""State of the optimizer, and the seconds of its step."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from megatron_compete.plan.job import Job
from megatron_compete.plan.sharding import gradient_bytes
from megatron_compete.plan.tensors import OF_LINEAR_LAYERS, Tensors

if TYPE_CHECKING:
    from megatron_compete.plan.layer_times import LayerTimes

MOMENTS = {"adam": 2, "lion": 1, "sgd": 1, "muon": 1, "dist_muon": 1}
"""fp32 numbers that are kept of a weight, beside the weight. Muon keeps Adam's two of all but matrices of linear layers."""

NEWTON_SCHULZ_STEPS = 5
"""Of Muon (upstream: `--muon-num-ns-steps`'s default)."""


def state_bytes(job: Job, tensors: Sequence[Tensors]) -> float:
    """Of one element of these tensors on the device, in the mean: moments, and an fp32 copy of weights in a lower
    precision. `--optimizer-cpu-offload` moves its fraction of both to the host."""
    elements = sum(item.on_rank for item in tensors)
    if not elements:
        return 0.0
    matrices = sum(item.on_rank for item in tensors if item.kind in OF_LINEAR_LAYERS) / elements
    on_device = 1.0 - (job.args.optimizer_offload_fraction if job.args.optimizer_cpu_offload else 0.0)
    return on_device * (matrices * _bytes(job, True) + (1 - matrices) * _bytes(job, False))


def _bytes(job: Job, is_matrix: bool) -> int:
    args = job.args
    if args.use_precision_aware_optimizer:
        return _precision_aware_bytes(job)
    moments = MOMENTS[args.optimizer] if is_matrix or "muon" not in args.optimizer else MOMENTS["adam"]
    return 4 * moments + (0 if job.element_bytes == 4 else 4)


def _precision_aware_bytes(job: Job) -> int:
    """Moments and main weights in chosen precisions; fp32 ones beside bf16 weights are kept as 16 further bits, unless
    weights are FP8 (upstream: `store_param_remainders`)."""
    args = job.args
    moments = int(args.exp_avg_dtype.itemsize + args.exp_avg_sq_dtype.itemsize)
    if job.element_bytes == 4:
        return moments
    remainders = args.bf16 and args.main_params_dtype == torch.float32 and not args.fp8_param_gather
    return moments + (2 if remainders else int(args.main_params_dtype.itemsize))


def update_seconds(job: Job, layers: "LayerTimes", tensors: Sequence[Tensors], ranks: int) -> float:
    """Seconds of a step's update of what is trained: gradient read for its norm and again, state and weights read and written, zeros; on the
    host by the memory's speed there and over PCIe; Muon's products."""
    tensors = [item for item in tensors if not item.frozen]
    elements = sum(item.on_rank for item in tensors)
    on_host = job.args.optimizer_offload_fraction if job.args.optimizer_cpu_offload else 0.0
    state = state_bytes(job, tensors)
    on_device = elements / ranks * (8 + 2 * state + job.element_bytes) + elements * gradient_bytes(job)
    seconds = layers.moving(on_device)
    if on_host:
        seconds += on_host * elements / ranks * HOST_BYTES / layers.hardware.host_bandwidth
    if "muon" in job.args.optimizer:
        matrices = sum(_newton_schulz_flops(job, item) for item in tensors if item.kind in OF_LINEAR_LAYERS)
        seconds += layers.computing(matrices / ranks, layers.hardware.gemm_efficiency, low_precision=False)
    return seconds


HOST_BYTES = 28
"""Moved for one element that is updated on the host: gradient over, weight back, state read and written."""


def _newton_schulz_flops(job: Job, tensors: Tensors) -> float:
    """Three products a step on the smaller side m of a matrix of `elements`, here taken as the square root at most:
    2 m n m twice and 2 m^3."""
    small = min(float(job.transformer.hidden_size), tensors.elements**0.5)
    large = tensors.elements / small
    return NEWTON_SCHULZ_STEPS * (4 * small * small * large + 2 * small**3) * tensors.count
