"""Kernels on a CPU, against the recurrences that they are published as, a position at a time in fp64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_compete.launch import cpu_backend as cpu
from megatron_compete.launch.cpu_kernels import (
    GroupedRMSNorm,
    causal_conv1d,
    hadamard_transform,
    l2norm,
    mamba_split_conv1d_scan_combined,
    selective_scan,
)
from tests.ranks import run_rank

BATCH, LENGTH, HEADS, SIZE, STATE, GROUPS, WIDTH = 2, 11, 4, 3, 5, 2, 4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scan_by_position(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    state = x.new_zeros(BATCH, HEADS, SIZE, STATE)
    outputs = []
    for t in range(x.shape[1]):
        update = dt[:, t, :, None, None] * x[:, t, :, :, None] * B[:, t, :, None, :]
        state = (dt[:, t] * A).exp()[..., None, None] * state + update
        outputs.append((state * C[:, t, :, None, :]).sum(-1))
    return torch.stack(outputs, dim=1)


@pytest.mark.parametrize("chunk", [1, 4, 11, 128])
def test_the_scan_is_the_recurrence_whatever_the_chunk(chunk: int) -> None:
    inputs = [
        random(BATCH, LENGTH, HEADS, SIZE, seed=1), F.softplus(random(BATCH, LENGTH, HEADS, seed=2)), -random(HEADS, seed=3).exp(),
        random(BATCH, LENGTH, HEADS, STATE, seed=4), random(BATCH, LENGTH, HEADS, STATE, seed=5),
    ]  # fmt: skip
    inputs = [value.requires_grad_() for value in inputs]
    found, wanted = selective_scan(*inputs, chunk), scan_by_position(*inputs)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-10)
    weights = random(*wanted.shape, seed=6)
    for one, other in zip(torch.autograd.grad((found * weights).sum(), inputs), torch.autograd.grad((wanted * weights).sum(), inputs)):  # fmt: skip
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-9)


def test_conv_gate_groups_and_skip_around_the_scan() -> None:
    """In fp32, as the kernel; the skip connection one number a head, or one a channel."""
    mixed = HEADS * SIZE + 2 * GROUPS * STATE
    projected = random(BATCH, LENGTH, HEADS * SIZE + mixed + HEADS)
    weight, bias, dt_bias, A = random(mixed, WIDTH, seed=1), random(mixed, seed=2), random(HEADS, seed=3), -random(HEADS, seed=4).exp()  # fmt: skip
    z, xBC, dt = projected.split([HEADS * SIZE, mixed, HEADS], dim=-1)
    padded = F.pad(xBC, (0, 0, WIDTH - 1, 0))
    convolved = F.silu(sum(padded[:, i : i + LENGTH] * weight[:, i] for i in range(WIDTH)) + bias)
    x, B, C = convolved.split([HEADS * SIZE, GROUPS * STATE, GROUPS * STATE], dim=-1)
    x = x.reshape(BATCH, LENGTH, HEADS, SIZE)
    of_head = torch.arange(HEADS) // (HEADS // GROUPS)
    B, C = (part.reshape(BATCH, LENGTH, GROUPS, STATE)[:, :, of_head] for part in (B, C))
    scanned = scan_by_position(x, F.softplus(dt + dt_bias), A, B, C)
    for D, headdim in ((random(HEADS, seed=7), SIZE), (random(HEADS, SIZE, seed=8), None)):
        skip = D if headdim is None else D[:, None]
        wanted = (scanned + skip * x).flatten(2) * F.silu(z)
        found = mamba_split_conv1d_scan_combined(
            projected.float(), weight.float(), bias.float(), dt_bias.float(), A.float(), D=D.float(), chunk_size=4,
            activation="silu", headdim=headdim, ngroups=GROUPS, norm_before_gate=False, seq_idx=None,
        )  # fmt: skip
        torch.testing.assert_close(found.double(), wanted, atol=1e-4, rtol=1e-4)


def test_each_group_is_normalized_by_itself() -> None:
    norm = GroupedRMSNorm(6, eps=1e-5, group_size=3, norm_before_gate=False, device="cpu", dtype=torch.float32)
    norm.weight.data = torch.arange(1.0, 7.0)
    x = random(2, 6).float()
    wanted = torch.cat([F.rms_norm(half, (3,), eps=1e-5) for half in x.chunk(2, dim=1)], dim=1) * norm.weight
    torch.testing.assert_close(norm(x), wanted)


def gated_delta_net(deterministic: bool) -> tuple[Tensor, Tensor]:
    """Output and gradient of Megatron's layer, by the stand-ins or by its own functions for deterministic runs."""
    from megatron.core.models.gpt.experimental_attention_variant_module_specs import get_gated_delta_net_module_spec
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
    from megatron.core.transformer.spec_utils import build_module

    from tests.moe.layouts import HIDDEN, Layout, initialize, transformer_config

    initialize(Layout())
    model_parallel_cuda_manual_seed(1)
    config = transformer_config(
        Layout(), transformer_impl="local", normalization="RMSNorm", experimental_attention_variant="gated_delta_net",
        linear_attention_freq=2, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=4,
        linear_value_head_dim=4, linear_conv_kernel_dim=4, deterministic_mode=deterministic,
    )  # fmt: skip
    groups = ProcessGroupCollection.use_mpu_process_groups()
    layer = build_module(get_gated_delta_net_module_spec(config), config=config, layer_number=1, pg_collection=groups)
    for parameter in layer.parameters():
        parameter.data *= 10
    x = torch.randn(70, 2, HIDDEN, generator=torch.Generator().manual_seed(3)).requires_grad_()
    output, _ = layer(x, None)
    output.sin().sum().backward()
    assert x.grad is not None
    return output.detach(), x.grad


def test_gated_delta_net_is_megatrons_deterministic_one() -> None:
    for found, wanted in zip(run_rank(gated_delta_net, False), run_rank(gated_delta_net, True), strict=True):
        assert wanted.abs().max() > 1e-3
        torch.testing.assert_close(found, wanted)


def test_the_delta_rule_is_the_recurrence() -> None:
    """Gated DeltaNet (arXiv 2412.06464): S_t = exp(g_t) S_(t-1) (1 - beta_t k_t k_t^T) + beta_t v_t k_t^T, o_t = S_t q_t."""
    from megatron_compete.launch.cpu_kernels import REPLACED

    rule: Any = REPLACED["megatron.core.ssm.gated_delta_net.gdn:chunk_gated_delta_rule"]
    q, k = (l2norm(random(BATCH, LENGTH, HEADS, STATE, seed=seed)) for seed in (1, 2))
    v, g, beta = random(BATCH, LENGTH, HEADS, SIZE, seed=3), -random(BATCH, LENGTH, HEADS, seed=4).abs(), random(BATCH, LENGTH, HEADS, seed=5).sigmoid()  # fmt: skip
    found, _ = rule(q, k, v, g=g, beta=beta)
    state = q.new_zeros(BATCH, HEADS, SIZE, STATE)
    for t in range(LENGTH):
        state = g[:, t].exp()[..., None, None] * state
        error = v[:, t] - torch.einsum("bhvk,bhk->bhv", state, k[:, t])
        state = state + beta[:, t, :, None, None] * error.unsqueeze(-1) * k[:, t].unsqueeze(-2)
        wanted = torch.einsum("bhvk,bhk->bhv", state, q[:, t]) / STATE**0.5
        torch.testing.assert_close(found[:, t], wanted, atol=1e-5, rtol=1e-4)


def test_lengths_and_the_convolution() -> None:
    x, weight = random(2, 5, 6), random(6, WIDTH, seed=1)
    torch.testing.assert_close(l2norm(x).norm(dim=-1), torch.ones(2, 5, dtype=torch.float64), atol=1e-5, rtol=0)
    found, state = causal_conv1d(x, weight, None, activation="silu", cu_seqlens=None)
    assert state is None
    later = x.clone()
    later[:, 3:] += 1
    changed, _ = causal_conv1d(later, weight, None, activation="silu", cu_seqlens=None)
    assert torch.equal(found[:, :3], changed[:, :3]) and not torch.equal(found[:, 3:], changed[:, 3:])


def test_hadamards_matrix_is_sylvesters() -> None:
    matrix = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(3):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    x = random(2, 3, 8)
    torch.testing.assert_close(hadamard_transform(x, scale=0.5), 0.5 * x @ matrix)


def upstream() -> dict[str, bool]:
    """What Megatron lacks without the packages; when an entry turns False its stand-in can go."""
    cpu.deactivate()
    from megatron.core.ssm.gated_delta_net import gdn
    from megatron.core.ssm.gated_delta_net.common import HAVE_FLA, l2norm
    from megatron.core.ssm.mamba_mixer import HAVE_MAMBA_SSM, mamba_split_conv1d_scan_combined
    from megatron.core.transformer.experimental_attention_variant import dsa

    return {
        "fast_hadamard_transform": dsa.hadamard_transform is None,
        "mamba_ssm": not HAVE_MAMBA_SSM and mamba_split_conv1d_scan_combined is None,
        "flash-linear-attention": not HAVE_FLA and (l2norm, gdn.causal_conv1d, gdn.chunk_gated_delta_rule) == (None, None, None),
    }  # fmt: skip


def test_upstream_still_needs_them() -> None:
    found = run_rank(upstream)
    assert all(found.values()), found
