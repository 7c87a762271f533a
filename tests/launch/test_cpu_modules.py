"""Local forms of what Megatron has of Transformer Engine's modules alone."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_compete.launch import cpu_backend as cpu
from megatron_compete.launch import cpu_modules
from tests.moe.layouts import HIDDEN, Layout, initialize, transformer_config
from tests.ranks import run_rank, run_ranks


def latent_attention() -> tuple[Tensor, Tensor]:
    """Causal attention with values of another size, and torch's."""
    from megatron.core.models.backends import LocalSpecProvider
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
    from megatron.core.transformer.enums import AttnMaskType

    initialize(Layout())
    model_parallel_cuda_manual_seed(1)
    config = transformer_config(Layout(), attention_dropout=0.0)
    attention: Any = LocalSpecProvider().core_attention()
    module = attention(
        config, 1, AttnMaskType.causal, "self", softmax_scale=0.3, k_channels=6, v_channels=5
    )  # fmt: skip
    query, key, value = (torch.randn(7, 2, 4, size) for size in (6, 6, 5))
    mask = torch.ones(1, 1, 7, 7, dtype=torch.bool).triu(1)
    wanted = F.scaled_dot_product_attention(*(x.permute(1, 2, 0, 3) for x in (query, key, value)), is_causal=True, scale=0.3)  # fmt: skip
    return module(query, key, value, mask), wanted.permute(2, 0, 1, 3).flatten(2)


def test_latent_attention_is_torchs() -> None:
    found, wanted = run_rank(latent_attention)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("normalization", ["RMSNorm", "LayerNorm"])
def test_weights_around_one(normalization: str) -> None:
    """--apply-layernorm-1p keeps the weight less one: the same function as the plain norm's."""
    config = transformer_config(Layout(), normalization=normalization, layernorm_zero_centered_gamma=True)
    norm = cpu_modules.ZeroCenteredNorm(config, 8, eps=1e-6)
    x, distance = torch.randn(3, 8), torch.randn(8)
    norm.weight.data = distance
    if normalization == "RMSNorm":
        assert norm.bias is None
        wanted = F.rms_norm(x, (8,), 1 + distance, 1e-6)
    else:
        wanted = F.layer_norm(x, (8,), 1 + distance, norm.bias, 1e-6)
    torch.testing.assert_close(norm(x), wanted)


def norm_and_linear(tp: int) -> dict[str, Tensor]:
    """Outputs and gradients of the fused module over tensor parallel ranks; those of all ranks put together."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    layout = Layout(tp=tp, world=tp)
    initialize(layout)
    model_parallel_cuda_manual_seed(1)
    config = transformer_config(layout, normalization="LayerNorm", layernorm_epsilon=1e-3)
    linear = cpu_modules.NormColumnParallelLinear(
        HIDDEN, 12, config=config, init_method=config.init_method, gather_output=False, bias=False, skip_bias_add=False
    )
    weights = torch.Generator().manual_seed(5)
    whole = torch.randn(12, HIDDEN, generator=weights)
    rank = parallel_state.get_tensor_model_parallel_rank()
    linear.weight.data = whole.chunk(tp)[rank].clone()
    linear.layer_norm_weight.data = torch.randn(HIDDEN, generator=weights)
    linear.layer_norm_bias.data = torch.randn(HIDDEN, generator=weights)
    x = torch.randn(4, 2, HIDDEN, generator=weights)
    output, _ = linear(x.chunk(tp)[rank].clone().requires_grad_())
    output.square().sum().backward()
    gradients = {name: value.grad for name, value in linear.named_parameters()}
    norms = (linear.layer_norm_weight, linear.layer_norm_bias)
    assert all(parameter.sequence_parallel == (tp > 1) for parameter in norms)
    for name in ("layer_norm_weight", "layer_norm_bias"):  # what finalize_model_grads does with marked parameters
        torch.distributed.all_reduce(gradients[name])
    parts = [torch.empty_like(output) for _ in range(tp)]
    torch.distributed.all_gather(parts, output.detach())
    del gradients["weight"]
    if tp == 1:
        wanted = F.layer_norm(x, (HIDDEN,), linear.layer_norm_weight, linear.layer_norm_bias, 1e-3) @ whole.T
        torch.testing.assert_close(output, wanted)
    return {"output": torch.cat(parts, dim=-1), **gradients}


def test_norm_and_linear_on_tensor_parallel_ranks() -> None:
    one, two = run_rank(norm_and_linear, 1), run_ranks(2, norm_and_linear, 2)[0]
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name])


def parts_of(spec: Any) -> list[Any]:
    """Modules and functions that a spec names, wherever."""
    import functools

    if isinstance(spec, functools.partial):
        return [spec.func, *(part for value in spec.keywords.values() for part in parts_of(value))]
    if isinstance(spec, list):
        return [part for one in spec for part in parts_of(one)]
    if dataclasses.is_dataclass(spec) and not isinstance(spec, type):
        return [part for value in vars(spec).values() for part in parts_of(value)]
    return [spec]


def test_the_local_form_differs_in_transformer_engines_modules_alone() -> None:
    from megatron.core.extensions import transformer_engine as te
    from megatron.core.models.hybrid.hybrid_layer_specs import hybrid_stack_spec

    theirs = {id(value) for name, value in vars(te).items() if name.startswith("TE") and value is not None}
    stock, local = parts_of(hybrid_stack_spec), parts_of(cpu_modules.local_form(hybrid_stack_spec))
    assert any(id(part) in theirs for part in stock)
    assert not any(id(part) in theirs for part in local)
    assert [a.module for a in vars(cpu_modules.local_form(hybrid_stack_spec).submodules).values() if a is not None] == [
        b.module for b in vars(hybrid_stack_spec.submodules).values() if b is not None
    ]


def said(call: Callable[[], Any]) -> str:
    try:
        call()
    except (AssertionError, ImportError, TypeError, NameError) as error:
        return str(error)
    return ""


def upstream() -> dict[str, bool]:
    """What Megatron itself still lacks without Transformer Engine; when an entry turns False its stand-in can go."""
    cpu.deactivate()
    from megatron.core.extensions.transformer_engine import TELayerNormColumnParallelLinear
    from megatron.core.models.backends import LocalSpecProvider
    from megatron.core.models.gpt import experimental_attention_variant_module_specs as variants
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_submodules
    from megatron.core.models.hybrid.hybrid_block import TENorm
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear
    from megatron.core.transformer import attention
    from megatron.core.transformer.dot_product_attention import DotProductAttention
    from megatron.core.transformer.multi_latent_attention import TELinear
    from megatron.core.transformer.torch_norm import WrappedTorchNorm
    from megatron.training.models.hybrid import default_hybrid_stack_spec

    latent = get_gpt_layer_local_submodules(multi_latent_attention=True).self_attention.submodules
    linear = default_hybrid_stack_spec.submodules.attention_layer.submodules.self_attention.submodules.linear_qkv
    config = transformer_config(Layout(), transformer_impl="local")
    sequence = transformer_config(Layout(tp=2, world=2))
    centred = transformer_config(Layout(), layernorm_zero_centered_gamma=True)
    return {
        "attention of latents": "k_channels"
        in said(lambda: DotProductAttention(config, 1, None, "self", k_channels=1)),
        "hybrid layers": linear is TELayerNormColumnParallelLinear,
        "layers that ranks have whole": TELinear is None or "Mock" in type(TELinear).__name__,
        "latent attention of tensor parallel ranks": latent.linear_kv_down_proj is ColumnParallelLinear,
        "norm within a linear layer": LocalSpecProvider().column_parallel_layer_norm_linear() is None,
        "norms of queries and keys": attention.TENorm is None,
        "norm of a hybrid model": "ransformer" in said(lambda: TENorm(config, 8)),
        "experimental variants": "transformer engine" in said(lambda: variants._get_backend_spec_provider(config)),
        "their attention": "transformer engine" in said(lambda: variants._get_self_attention_module_spec(config)),
        "norm of sequence parallel ranks": "sequence parallel" in said(lambda: WrappedTorchNorm(sequence, 8)),
        "norm around one": "zero_centered_gamma" in said(lambda: WrappedTorchNorm(centred, 8)),
    }


def test_upstream_still_needs_them() -> None:
    found = run_rank(upstream)
    assert all(found.values()), found
