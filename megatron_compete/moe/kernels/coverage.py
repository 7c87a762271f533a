"""What the kernels cover: the experts, the settings and the GPU. Whatever they do not is `NotCovered`, with the reason."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.activations import fast_gelu, quick_gelu, squared_relu
from megatron.core.transformer.moe.experts import SequentialMLP, TEGroupedMLP
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_compete.moe.expert_weights import expert_parameters
from megatron_compete.routing.responses import l2_response, softplus_response
from megatron_compete.routing.utility import utility

ALIGNMENT = 16
"""Bytes that the kernels load at a time; rows of the matrices are multiples of it."""

CAPABILITY = (9, 0)
"""Oldest GPU whose shared memory holds the tiles of `tiles.py`, and that multiplies e4m3."""

ACTIVATIONS = (
    (F.relu, "relu"),
    (squared_relu, "squared_relu"),
    (F.silu, "silu"),
    (F.gelu, "gelu"),
    (fast_gelu, "gelu_tanh"),
    (quick_gelu, "quick_gelu"),
)
"""Megatron's activation functions by the names of `tile_math.activate`."""

RESPONSE_NAMES: dict[Any, str] = {softplus_response: "softplus", l2_response: "l2", utility: "projection"}
"""Reductions by the names of `tile_math.tile_response`."""


@dataclass(frozen=True)
class ExpertForm:
    """What an expert computes: fc2(act(fc1 x)), or with a gate fc2(act(gate x) * (up x)) with gate above up in fc1."""

    hidden: int
    ffn: int
    activation: str
    gated: bool
    round_gate: bool = True
    """Whether act(gate x) is rounded to the precision before it is multiplied."""

    @property
    def fc1_rows(self) -> int:
        """Output channels of fc1."""
        return self.ffn * (2 if self.gated else 1)

    def flops(self) -> int:
        """FLOPs of the matrices for one token."""
        return 2 * self.hidden * (self.fc1_rows + self.ffn)


class NotCovered(Exception):
    """The kernels cannot do this; the message says why."""


def expert_form(config: TransformerConfig, fp8: bool = False) -> ExpertForm:
    """What the experts of this model compute.

    Args:
        fp8: whether they shall be scored in e4m3.
    Raises:
        NotCovered: something that the kernels do not know.
    """
    if config.add_bias_linear:
        raise NotCovered("experts have biases; --disable-bias-linear leaves them out")
    if (config.expert_tensor_parallel_size or 1) > 1:
        raise NotCovered(
            f"--expert-tensor-parallel-size {config.expert_tensor_parallel_size}: a rank has partial outputs, and a "
            "response needs whole ones"
        )
    if config.gated_linear_unit:
        check_gate(config)
    assert config.moe_ffn_hidden_size is not None
    form = ExpertForm(
        hidden=config.moe_latent_size or config.hidden_size,
        ffn=config.moe_ffn_hidden_size,
        activation=_activation(config),
        gated=config.gated_linear_unit,
        round_gate=not (config.bias_activation_fusion or config.use_te_activation_func),
    )
    multiple = ALIGNMENT // (1 if fp8 else config.params_dtype.itemsize)
    width = "--moe-latent-size" if config.moe_latent_size else "--hidden-size"
    for flag, size in ((width, form.hidden), ("--moe-ffn-hidden-size", form.ffn)):
        if size % multiple:
            raise NotCovered(f"{flag} {size} is not a multiple of {multiple}")
    return form


def check_gate(config: TransformerConfig) -> None:
    """Raise `NotCovered` for a gated expert that is more than act(gate x) * (up x)."""
    if config.activation_func_clamp_value is not None:
        raise NotCovered("gates are clamped (activation_func_clamp_value)")
    if config.glu_linear_offset:
        raise NotCovered("gates have an offset (glu_linear_offset)")
    if config.moe_mlp_glu_interleave_size is not None:
        raise NotCovered("gate and up are interleaved (--moe-mlp-glu-interleave-size)")


def _activation(config: TransformerConfig) -> str:
    for function, name in ACTIVATIONS:
        if config.activation_func is function:
            te_gelu = name == "gelu" and config.use_te_activation_func  # Transformer Engine's is the tanh form
            return "gelu_tanh" if te_gelu else name
    name = getattr(config.activation_func, "__name__", repr(config.activation_func))
    raise NotCovered(f"the experts' activation is {name}")


def response_name(config: TransformerConfig, reduction: Any) -> str:
    """The kernels' name of a reduction of expert outputs.

    Raises:
        NotCovered: they have none.
    """
    if config.moe_latent_size and reduction is not utility:
        raise NotCovered(
            f"--moe-latent-size {config.moe_latent_size}: a response is that of an expert's output after the layer's "
            "projection, and the kernels have it before"
        )
    if reduction not in RESPONSE_NAMES:
        raise NotCovered(f"the kernels do not have the response {getattr(reduction, '__name__', reduction)}")
    return RESPONSE_NAMES[reduction]


def is_interpreted() -> bool:
    """Whether Triton interprets kernels on the host (TRITON_INTERPRET=1, for tests)."""
    try:
        import triton
    except ImportError:
        return False
    return bool(triton.knobs.runtime.interpret)


def check_device() -> None:
    """Raise `NotCovered` where this process cannot run the kernels."""
    try:
        import triton  # noqa: F401
    except ImportError:
        raise NotCovered("Triton is not installed") from None
    if is_interpreted():
        return
    if not torch.cuda.is_available():
        raise NotCovered("there is no GPU")
    capability = torch.cuda.get_device_capability()
    if capability < CAPABILITY:
        raise NotCovered(
            f"the GPU has compute capability {capability[0]}.{capability[1]}, and the tiles need {CAPABILITY[0]}.{CAPABILITY[1]}"
        )


def check_experts(experts: nn.Module, form: ExpertForm, tokens_TH: Tensor) -> None:
    """Raise `NotCovered` for modules, weights or tokens that are not as the settings promise."""
    if type(experts) not in (SequentialMLP, TEGroupedMLP):
        raise NotCovered(f"the experts are a {type(experts).__name__}")
    if tokens_TH.dtype == torch.float32 and not is_interpreted():
        raise NotCovered("tokens are fp32, for which Megatron's modules are faster")
    if tokens_TH.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise NotCovered(f"tokens are {tokens_TH.dtype}")
    for fc1, fc2 in expert_parameters(experts):
        _check_weight(fc1, (form.fc1_rows, form.hidden), tokens_TH.dtype)
        _check_weight(fc2, (form.hidden, form.ffn), tokens_TH.dtype)


def _check_weight(weight: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> None:
    if type(weight) not in (Tensor, nn.Parameter):
        raise NotCovered(f"weights are held as {type(weight).__name__}")
    if weight.dtype != dtype or tuple(weight.shape) != shape:
        raise NotCovered(f"a weight is {weight.dtype} {tuple(weight.shape)}, expected {dtype} {shape}")
    if not weight.is_contiguous() or weight.data_ptr() % ALIGNMENT:
        raise NotCovered(f"a weight is not contiguous, or not aligned to {ALIGNMENT} bytes")
