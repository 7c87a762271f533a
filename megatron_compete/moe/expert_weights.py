"""The weights of this rank's experts, for scorers that multiply with them without calling Megatron's modules.

F width of an expert, H hidden size.
"""

from collections.abc import Iterator
from typing import Any

from megatron.core.transformer.moe.experts import SequentialMLP
from torch import Tensor, nn


def expert_parameters(experts: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """fc1 [F or 2F, H] and fc2 [H, F] of each local expert, from either of Megatron's modules.

    SequentialMLP holds an MLP for each expert; TEGroupedMLP holds `weight0`, `weight1`, ... or all in one `weight`.
    """
    if isinstance(experts, SequentialMLP):
        yield from ((mlp.linear_fc1.weight, mlp.linear_fc2.weight) for mlp in experts.local_experts)
        return
    for index in range(int(experts.num_local_experts)):  # type: ignore[arg-type]
        yield _grouped_weight(experts.linear_fc1, index), _grouped_weight(experts.linear_fc2, index)


def _grouped_weight(linear: Any, index: int) -> Tensor:
    named = getattr(linear, f"weight{index}", None)
    return linear.weight[index] if named is None else named


def await_parameters(experts: nn.Module) -> None:
    """Run the forward pre-hooks of all modules inside, as Megatron's own fused experts do.

    Under `--overlap-param-gather` they wait for the gathering of a module's parameters, which are read here without a
    call of the module (upstream: `TEGroupedMLP._make_fused_impl_pre_forward_hook`).
    """
    for module in experts.modules():
        for key, hook in module._forward_pre_hooks.items():
            hook(module, (), *([{}] if key in module._forward_pre_hooks_with_kwargs else []))
