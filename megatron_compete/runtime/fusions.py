"""Which of Megatron's optional CUDA kernels this host has; Megatron chooses among them by itself.

Nothing here changes a choice. `megatron_compete.training` leaves Megatron's fusion flags at their defaults, except that
`--relu`, which has no fused kernel, switches the fused bias and activation off.
"""

import importlib.util
from dataclasses import dataclass


@dataclass(frozen=True)
class Fusion:
    """A kernel of Megatron's, the module that brings it, and the flag that asks for it."""

    name: str
    module: str
    flag: str
    without: str
    """What Megatron does where the module is missing."""


FUSIONS = (
    Fusion("layers, FP8, grouped experts", "transformer_engine", "--transformer-impl transformer_engine (default)", "stops"),
    Fusion("weight gradients added by the GEMM", "fused_weight_gradient_mlp_cuda", "on; --no-gradient-accumulation-fusion", "stops"),
    Fusion("Adam, gradient norm", "transformer_engine", "always", "apex's, else torch's"),
    Fusion("rotary embedding", "transformer_engine", "on; --no-rope-fusion", "unfused"),
    Fusion("permutation of tokens", "transformer_engine", "--moe-permute-fusion", "stops"),
    Fusion("router's softmax and top-k", "transformer_engine", "--moe-router-fusion", "stops"),
    Fusion("layer norm of local layers", "apex", "--transformer-impl local", "torch's"),
    Fusion("masked softmax of local attention", "scaled_upper_triang_masked_softmax_cuda", "on; --no-masked-softmax-fusion", "stops"),
    Fusion("attention", "flash_attn", "--attention-backend auto (default)", "cuDNN's, through Transformer Engine"),
    Fusion("dispatch and combine of tokens", "deep_ep", "--moe-token-dispatcher-type flex", "stops"),
)  # fmt: skip
"""As of Megatron-Core 0.19: `tensor_parallel/layers.py`, `optimizer/__init__.py`, `fusions/`, `moe_utils.py`."""


def installed(module: str) -> bool:
    """Whether the module can be found; it is not imported, since that may need a device."""
    return importlib.util.find_spec(module) is not None


def available_fusions() -> dict[str, bool]:
    """By name: whether this host has the kernel."""
    return {fusion.name: installed(fusion.module) for fusion in FUSIONS}
