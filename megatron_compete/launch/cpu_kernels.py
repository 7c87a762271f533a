"""Kernels that Megatron's layers take from packages which need CUDA, as plain PyTorch: the same numbers, no speed.

Each computes what the package documents, in fp32 where its kernel does, and stands in for the kernel alone: the layer
around it is Megatron's.
"""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.ssm.gated_delta_net.common import torch_chunk_gated_delta_rule
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor


def _causal_conv_silu(inputs_BLC: Tensor, weight_CW: Tensor, bias_C: Tensor | None) -> Tensor:
    """Each channel's own convolution over the last W positions, then SiLU: [B, L, C]."""
    channels, width = weight_CW.shape
    outputs = F.conv1d(inputs_BLC.transpose(1, 2), weight_CW.unsqueeze(1), bias_C, padding=width - 1, groups=channels)
    return F.silu(outputs[..., : inputs_BLC.shape[1]].transpose(1, 2))


def selective_scan(x_BLHP: Tensor, dt_BLH: Tensor, A_H: Tensor, B_BLHN: Tensor, C_BLHN: Tensor, chunk: int) -> Tensor:
    """Mamba-2's recurrence over a sequence (arXiv 2405.21060), without its skip connection: [B, L, H, P].

    The state of a head is a matrix [P, N]: h_t = exp(dt_t A) h_(t-1) + dt_t x_t B_t^T, and the answer y_t = h_t C_t.
    A chunk of positions is one masked product, as the paper has it, and hands its last state to the next.

    Args:
        chunk: positions in one product; the result does not depend on it.
    """
    state_BHPN = x_BLHP.new_zeros(x_BLHP.shape[0], *x_BLHP.shape[2:], B_BLHN.shape[-1])
    outputs = []
    for x, dt, B, C in zip(*(whole.split(chunk, dim=1) for whole in (x_BLHP, dt_BLH, B_BLHN, C_BLHN)), strict=True):
        decay_BHL = (dt * A_H).cumsum(1).transpose(1, 2)
        between_BHLS = decay_BHL.unsqueeze(-1) - decay_BHL.unsqueeze(-2)
        after = torch.ones_like(between_BHLS, dtype=torch.bool).triu(1)
        weights_BHLS = between_BHLS.masked_fill(after, -torch.inf).exp() * torch.einsum("blhn,bshn->bhls", C, B)
        inputs_BSHP = dt.unsqueeze(-1) * x
        from_chunk = torch.einsum("bhls,bshp->blhp", weights_BHLS, inputs_BSHP)
        from_before = torch.einsum("blhn,bhpn,bhl->blhp", C, state_BHPN, decay_BHL.exp())
        outputs.append(from_chunk + from_before)
        to_end_BHS = (decay_BHL[..., -1:] - decay_BHL).exp()
        arrived = torch.einsum("bhs,bshp,bshn->bhpn", to_end_BHS, inputs_BSHP, B)
        state_BHPN = decay_BHL[..., -1, None, None].exp() * state_BHPN + arrived
    return torch.cat(outputs, dim=1)


def mamba_split_conv1d_scan_combined(
    zxbcdt: Tensor, conv1d_weight: Tensor, conv1d_bias: Tensor | None, dt_bias: Tensor, A: Tensor, D: Tensor,
    chunk_size: int, *, activation: str, headdim: int | None, ngroups: int, norm_before_gate: bool, seq_idx: Tensor | None,
) -> Tensor:  # fmt: skip
    """`mamba_ssm.ops.triton.ssd_combined.mamba_split_conv1d_scan_combined` as `MambaMixer` calls it.

    Args:
        zxbcdt: gate [.., H P], inputs [.., H P], B and C [.., G N] each, and steps [.., H] of every position [B, L].
        conv1d_weight, conv1d_bias: of the convolution over inputs, B and C, [H P + 2 G N, W].
        dt_bias, A: [H]. D: the skip connection, [H], or [H, P] where headdim is None.
        ngroups: G; the heads of a group share B and C.
        norm_before_gate: does not matter here, where nothing is normalized.
    """
    assert activation in ("silu", "swish") and seq_idx is None
    heads = A.shape[0]
    headdim = headdim or D.shape[1]
    inner = heads * headdim
    mixed = conv1d_weight.shape[0]
    z, xBC, dt = zxbcdt.split([inner, mixed, heads], dim=-1)
    xBC = _causal_conv_silu(xBC, conv1d_weight, conv1d_bias)
    x, B, C = xBC.float().split([inner, (mixed - inner) // 2, (mixed - inner) // 2], dim=-1)
    x = x.unflatten(-1, (heads, headdim))
    B, C = (part.unflatten(-1, (ngroups, -1)).repeat_interleave(heads // ngroups, dim=2) for part in (B, C))
    y = selective_scan(x, F.softplus(dt.float() + dt_bias), A, B, C, chunk_size)
    y = (y + D.reshape(heads, -1) * x).flatten(2)
    return (y * F.silu(z.float())).to(zxbcdt.dtype)


class GroupedRMSNorm(torch.nn.Module):
    """`mamba_ssm.ops.triton.layernorm_gated.RMSNorm` without a gate, sharded in checkpoints as Megatron's subclass."""

    def __init__(
        self, hidden_size: int, eps: float, group_size: int, norm_before_gate: bool, device: Any, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.eps, self.group_size = eps, group_size
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.tp_group: Any = None
        """The mixer sets it."""

    def forward(self, x: Tensor) -> Tensor:
        """[.., H P], each group of `group_size` normalized by itself."""
        grouped = x.float().unflatten(-1, (-1, self.group_size))
        normalized = grouped * torch.rsqrt(grouped.square().mean(-1, keepdim=True) + self.eps)
        return (normalized.flatten(-2) * self.weight.float()).to(x.dtype)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> Any:
        """Upstream: `mamba_mixer.ExtendedRMSNorm`."""
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(keep_vars=True), prefix, {"weight": 0}, sharded_offsets,
            tp_group=self.tp_group, dp_cp_group=metadata["dp_cp_group"],
        )  # fmt: skip


def l2norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """`fla.modules.l2norm.l2norm`: the last axis at length one."""
    return (x.float() * torch.rsqrt(x.float().square().sum(-1, keepdim=True) + eps)).to(x.dtype)


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, cu_seqlens: Tensor | None, **unused: Any
) -> tuple[Tensor, None]:
    """`fla.modules.convolution.causal_conv1d` as `GatedDeltaNet` calls it, x [B, L, C], weight [C, W]."""
    assert activation in ("silu", "swish") and cu_seqlens is None
    return _causal_conv_silu(x, weight, bias), None


def hadamard_transform(x: Tensor, scale: float = 1.0) -> Tensor:
    """`fast_hadamard_transform.hadamard_transform`: the last axis times Sylvester's matrix; its size is a power of two."""
    size = x.shape[-1]
    assert size & (size - 1) == 0, f"{size} is no power of two"
    width = 1
    while width < size:
        first, second = x.unflatten(-1, (-1, 2, width)).unbind(-2)
        x = torch.stack([first + second, first - second], dim=-2).flatten(-3)
        width *= 2
    return x * scale


REPLACED: dict[str, Any] = {
    "megatron.core.ssm.mamba_mixer:HAVE_MAMBA_SSM": True,
    "megatron.core.ssm.mamba_mixer:ExtendedRMSNorm": GroupedRMSNorm,
    "megatron.core.ssm.mamba_mixer:mamba_split_conv1d_scan_combined": mamba_split_conv1d_scan_combined,
    "megatron.core.transformer.experimental_attention_variant.dsa:hadamard_transform": hadamard_transform,
    "megatron.core.ssm.gated_delta_net.common:HAVE_FLA": True,
    "megatron.core.ssm.gated_delta_net.common:l2norm": l2norm,
    "megatron.core.ssm.gated_delta_net.gdn:causal_conv1d": causal_conv1d,
    "megatron.core.ssm.gated_delta_net.gdn:chunk_gated_delta_rule": torch_chunk_gated_delta_rule,
}
"""What is replaced on a host without CUDA, and by what."""
