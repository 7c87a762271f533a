"""Megatron's gradient clipping by Transformer Engine's kernels where Megatron misses one of them.

Megatron 0.19 takes the norm and the scaling of gradients from Transformer Engine together with
`multi_tensor_scale_tensor`, or none of them, and Transformer Engine 2.12 lacks the last. Without apex Megatron then goes
through the tensors in a loop that waits for the device at each: some 2,000 times a step for 64 experts in 16 layers, in
the plain model and ours alike. A step measured so would say little about either. The doctor's row is "gradient norm and
clipping".
"""

from typing import Any


def use_fused_clipping() -> str:
    """Bind the kernels that are there; returns what clips: `megatron's choice` or `transformer_engine, by this benchmark`."""
    from megatron.core.optimizer import clip_grads
    from megatron.core.utils import local_multi_tensor_applier

    chosen = "megatron's choice"
    kernels = _kernels()
    if kernels is None or clip_grads.multi_tensor_applier is not local_multi_tensor_applier:
        return chosen
    clip_grads.multi_tensor_applier = kernels.multi_tensor_applier
    clip_grads.l2_norm_impl = kernels.multi_tensor_l2norm
    clip_grads.multi_tensor_scale_impl = kernels.multi_tensor_scale  # and, as with apex, one number goes to the host
    return "transformer_engine, by this benchmark"


def _kernels() -> Any:
    try:
        import transformer_engine.pytorch.optimizers as kernels
    except ImportError:
        return None
    return kernels
