"""XMoE's router and the perturbed cosine router: Megatron's top-K router with other logits.

Score function, top-K, balance losses and z-loss act on these logits as on those of the linear router.
"""

import math

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.moe_utils import router_gating_linear
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_compete.common.errors import CompeteError
from megatron_compete.moe.baselines.config import BaselineConfig, flag_of
from megatron_compete.routing.baselines.cosine import cosine_logits, perturbed_cosine_logits


class CosineRouter(TopKRouter):
    """XMoE: logits are cosines between a projected token and the experts' embeddings, over a temperature.

    `projection` is [D, H]; `weight`, Megatron's name for a router's parameter, holds the embeddings [E, D]. Both are
    initialised, marked and cast as Megatron's router weight. `log_temperature` [1], where it is learnt, has no weight
    decay, like everything in one dimension. A cosine has no bias.
    """

    def __init__(
        self,
        config: TransformerConfig,
        pg_collection: ProcessGroupCollection | None = None,
        is_mtp_layer: bool = False,
        *,
        settings: BaselineConfig,
    ) -> None:
        super().__init__(config, pg_collection, is_mtp_layer)
        self.settings = settings
        dim = routing_dim(config, settings)
        self.weight = torch.nn.Parameter(torch.empty(config.num_moe_experts, dim, dtype=torch.float32))
        self.projection = torch.nn.Parameter(torch.empty(dim, config.hidden_size, dtype=torch.float32))
        self.log_temperature = torch.nn.Parameter(torch.empty(1)) if settings.learn_temperature else None
        self.bias = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise; the base class's constructor asks for it before there is a projection."""
        super().reset_parameters()
        if not hasattr(self, "projection"):
            return
        if self.config.perform_initialization:
            self.config.init_method(self.projection)
        if self.log_temperature is not None:
            self.log_temperature.data.fill_(math.log(self.settings.temperature))
        for parameter in self.parameters():  # the weight once more
            parameter.data = parameter.data.to(dtype=self.config.params_dtype)
            setattr(parameter, "sequence_parallel", self.config.sequence_parallel)  # noqa: B010  as upstream

    def gating(self, input: Tensor) -> Tensor:
        """Router inputs [S, B, H] to logits [S, B, E], in the dtype of Megatron's router; cosines in fp32 or above."""
        for parameter in self.parameters():
            if parameter.device != input.device:  # as upstream: initialised on the CPU
                parameter.data = parameter.data.to(device=input.device)
        dtype = {"fp32": torch.float32, "fp64": torch.float64}.get(self.config.moe_router_dtype, input.dtype)
        wide = torch.promote_types(dtype, torch.float32)
        if input.numel() > 0:
            projected = router_gating_linear(input, self.projection, None, dtype)
        else:  # upstream's reshape leaves no tokens undefined
            projected = torch.nn.functional.linear(input.to(dtype), self.projection.to(dtype))
        return self.logits(projected.to(wide), self.weight.to(wide)).to(dtype)

    def logits(self, projected: Tensor, experts_ED: Tensor) -> Tensor:
        """Tokens in the routing dimensions [S, B, D] to logits [S, B, E]."""
        return cosine_logits(projected, experts_ED, self.temperature())

    def temperature(self) -> float | Tensor:
        """As set, or as learnt so far."""
        return self.settings.temperature if self.log_temperature is None else self.log_temperature.float().exp()


class PerturbedCosineRouter(CosineRouter):
    """The perturbed cosine router: as XMoE, with a constant added to both norms."""

    def logits(self, projected: Tensor, experts_ED: Tensor) -> Tensor:
        """Tokens in the routing dimensions [S, B, D] to logits [S, B, E]."""
        return perturbed_cosine_logits(projected, experts_ED, self.temperature(), self.settings.perturbation)


def routing_dim(config: TransformerConfig, settings: BaselineConfig) -> int:
    """D: as set, else half the number of experts (both papers' authors)."""
    return settings.dim or int(config.num_moe_experts) // 2


def check_cosine(config: TransformerConfig, settings: BaselineConfig) -> None:
    """In one dimension a cosine is a sign, so that experts tie."""
    dim = routing_dim(config, settings)
    if dim < 2:
        raise CompeteError(
            f"{flag_of('dim')} {settings.dim} with --num-experts {config.num_moe_experts} compares tokens and experts in "
            f"{dim} dimension: give 2 or more"
        )
