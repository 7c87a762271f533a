"""Routers and a tile that stands for no image.

Megatron's balance losses divide by the tokens that count (upstream: `switch_load_balancing_loss_func`), which is 0 / 0
where none does. So a router behaves as in evaluation where all that it is given is padding: it attaches no loss and counts
no token. It is told by the mask and not by who calls, because a recomputed layer is called once more in the backward pass.
"""

from typing import Any

import torch
from megatron.core.transformer.moe.moe_layer import MoELayer
from torch import Tensor


def spare_padding(layer: MoELayer) -> None:
    """Have this layer's router take nothing from calls in which every token is padding."""

    def before(router: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask: Tensor | None = kwargs.get("padding_mask", args[1] if len(args) > 1 else None)
        if mask is not None and bool(mask.all()):
            router.training = False

    def after(router: torch.nn.Module, *call: Any) -> None:
        router.training = layer.training

    layer.router.register_forward_pre_hook(before, with_kwargs=True)
    layer.router.register_forward_hook(after, always_call=True)
