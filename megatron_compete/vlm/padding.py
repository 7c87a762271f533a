"""What routers are given and are not to count: a tile that stands for no image, and the ends of short sequences.

B samples, S tokens of text, P positions of the language model's sequence.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.moe_logging import get_moe_metrics_tracker
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor

from megatron_compete.upstream import Replacement, wrap_symbol


def spare_padding(layer: MoELayer) -> None:
    """Have this layer's router take nothing from calls in which every token is padding.

    Megatron's balance losses divide by the tokens that count (upstream: `switch_load_balancing_loss_func`), which is 0 / 0
    where none does. So the router behaves as in evaluation: it attaches no loss and counts no token. It is told by the mask
    and not by who calls, because a recomputed layer is called once more in the backward pass.

    In the mean that is logged of its losses such a call counts as 0, as it does in the training loss.
    """

    def before(router: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask: Tensor | None = kwargs.get("padding_mask", args[1] if len(args) > 1 else None)
        if mask is not None and bool(mask.all()):
            if router.training:
                _log_no_z_loss(router)
            router.training = False

    def after(router: torch.nn.Module, *call: Any) -> None:
        router.training = layer.training

    layer.router.register_forward_pre_hook(before, with_kwargs=True)
    layer.router.register_forward_hook(after, always_call=True)


def _log_no_z_loss(router: Any) -> None:
    """Log a z-loss of 0. Megatron's tracker averages it over the group that a router names when it logs one: a rank that has
    had only text would name none, and the others would wait for it (upstream: `MoEMetricsTracker._sync_metrics`). Groups
    of the other losses have one rank, for tensors and sequences are not split."""
    if router.config.moe_z_loss_coeff is not None:
        get_moe_metrics_tracker().record(
            "z_loss",
            torch.zeros((), device=router.weight.device),
            router.layer_number,
            router.config.num_layers,
            avg_group=router.tp_dp_cp_group,
        )


@functools.cache
def bias_counts_tokens_alone() -> Replacement:
    """From here on an expert bias's routers count by a mask of tokens: upstream lays it over experts, which fails, or where
    there are as many tokens as experts hides the wrong ones."""

    def count(
        upstream: Callable[..., None], self: TopKRouter, routing_map: Tensor, padding_mask: Tensor | None = None
    ) -> None:
        upstream(self, routing_map, None if padding_mask is None else padding_mask.unsqueeze(-1))

    return wrap_symbol("megatron.core.transformer.moe.router:TopKRouter._apply_expert_bias", count)


def padded_positions(
    position_ids: Tensor, image_token_mask: Tensor, num_image_tiles: Tensor, tile_length: int, length: int | None
) -> Tensor:
    """The language model's positions that hold nothing, bool [B, P]: after a sample's last token.

    Args:
        position_ids: of the text, [B, S], filled up with zeros on the right.
        image_token_mask: tokens that stand for an image, bool [B, S].
        num_image_tiles: tiles of each image of the batch, in order.
        tile_length: positions that a tile takes.
        length: P; None for that of the longest sample, filled up or not.
    """
    widths = torch.ones_like(position_ids)
    widths[image_token_mask] = num_image_tiles.to(widths.dtype) * tile_length
    follows = position_ids.flip(1).cumsum(1).flip(1) > 0  # this token or one after it is no filler
    follows[:, 0] = True
    ends = (widths * follows).sum(1, keepdim=True)
    whole = int(widths.sum(1).max()) if length is None else length
    return torch.arange(whole, device=position_ids.device) >= ends
