"""Latent mixtures of experts: competition in the space where the layer's output is.

Under `--moe-latent-size` a layer projects its tokens from H down to L, its experts map L to L, and their weighted sum is
projected up again (upstream: `MoELayer.preprocess` and `postprocess`). The router reads the tokens as they are. By
linearity the output is sum_e w_e W_up y_e, so what expert e contributes is the vector W_up y_e of H: its response is that
vector's, and so is its part in the diversity loss. By utility no expert's output is projected, because
(W_up y) . v = y . (W_up^T v).

The bias of the upper projection is added once, whoever wins, and is part of no contribution.
"""

from typing import Any

import torch
from torch import Tensor

from megatron_compete.routing.responses import Response


class LatentProjections:
    """The two projections of a layer, as competition needs them.

    Args:
        down, up: Megatron's modules; called rather than read, so that whatever waits for their weights or keeps account
            of their passes knows.
        has_bias: whether they add one.
    """

    def __init__(self, down: Any, up: Any, has_bias: bool) -> None:
        self.down = down
        self.up = up
        self.has_bias = has_bias

    @classmethod
    def of(cls, layer: Any) -> "LatentProjections | None":
        """Those of a `MoELayer`; None where experts see the tokens themselves."""
        config = layer.config
        if not config.moe_latent_size:
            return None
        return cls(layer.fc1_latent_proj, layer.fc2_latent_proj, config.add_bias_linear)

    @property
    def modules(self) -> tuple[torch.nn.Module, torch.nn.Module]:
        """Both."""
        return self.down, self.up

    def tokens(self, tokens_TH: Tensor) -> Tensor:
        """What the experts see, [T, L]."""
        return self.down(tokens_TH)[0]

    def contributions(self, outputs: Tensor) -> Tensor:
        """Expert outputs [..., L] as they become part of the layer's output, [..., H]."""
        projected = self.up(outputs)[0]
        return projected - self.up.bias if self.has_bias else projected

    def add_bias(self, combined: Tensor) -> Tensor:
        """The layer's output from weighted contributions, [..., H]."""
        return combined + self.up.bias if self.has_bias else combined

    def response(self, response: Response) -> Response:
        """The response of contributions, as a function of expert outputs [..., L]."""
        return lambda outputs: response(self.contributions(outputs))

    def gradients(self, gradients_TH: Tensor) -> Tensor:
        """W_up^T v [T, L] of gradients v of the layer's output; without gradient."""
        return gradients_TH @ self.up.weight
