"""The projector from the tower's hidden size to the language model's: Megatron's MLP, or one layer of experts.

Megatron's MoE layers, experts and dispatchers take what goes in to be as wide as what comes out. Here the layer's
settings (router, dispatcher) are of the width that goes in, its experts' of the width that comes out.

H width of the tower, L of the language model.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from megatron.core.models.backends import BackendSpecProvider, LocalSpecProvider
from megatron.core.models.vision.multimodal_projector import MultimodalProjector
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import make_viewless_tensor
from torch import Tensor

from megatron_compete.common.errors import CompeteError
from megatron_compete.moe.baselines.layer import VariableMoELayer
from megatron_compete.moe.layer import CompeteMoELayer
from megatron_compete.moe.specs import Exchange
from megatron_compete.vlm.tower import moe_builder, uses_transformer_engine


def build_projector(
    config: TransformerConfig, input_size: int, exchange: Exchange | None, groups: ProcessGroupCollection
) -> MegatronModule:
    """Megatron's two-layer MLP [H to L], or one layer of experts of that shape.

    Args:
        config: the projector's; `hidden_size` is L.
        input_size: H.
        exchange: what replaces the `MoELayer` of a projector with experts; None for one without.
        groups: the model's.
    """
    if config.num_moe_experts:
        assert exchange is not None
        return ExpertProjector(config, input_size, exchange, groups)
    return MultimodalProjector(config, dense_submodules(config), "mlp", input_size, tp_group=groups.tp)


def dense_submodules(config: TransformerConfig) -> MLPSubmodules:
    """Linear layers of a projector without experts."""
    backend: BackendSpecProvider = LocalSpecProvider()
    if uses_transformer_engine(config):
        from megatron.core.extensions.transformer_engine_spec_provider import TESpecProvider

        backend = TESpecProvider()
    return MLPSubmodules(linear_fc1=backend.column_parallel_linear(), linear_fc2=backend.row_parallel_linear())


class ExpertProjector(MegatronModule):
    """A projector whose `encoder` is a layer of experts. The arguments are those of `build_projector`."""

    def __init__(
        self, config: TransformerConfig, input_size: int, exchange: Exchange, groups: ProcessGroupCollection
    ) -> None:
        super().__init__(config=config)
        of_layer = copy.copy(config)
        of_layer.hidden_size = input_size
        builder = changing_width(exchange(moe_builder(config)), config)
        self.encoder = builder(config=of_layer, pg_collection=groups)
        self.encoder.set_layer_number(1)

    def forward(self, hidden_states: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Embeddings [patches, tiles, L] of states [patches, tiles, H].

        Args:
            padding_mask: bool [tiles, patches], True for patches that the router does not count; None for none.
        """
        output, _ = self.encoder(hidden_states, padding_mask=padding_mask)
        embeddings: Tensor = make_viewless_tensor(inp=output, requires_grad=True, keep_graph=True)
        return embeddings


def changing_width(moe: functools.partial, of_experts: TransformerConfig) -> functools.partial:
    """The builder of a `MoELayer`, or of what stands for it, whose experts have settings of their own.

    Raises:
        CompeteError: a layer of which it is not known how its output may be wider than its input.
    """
    layer = CHANGING_WIDTH.get(moe.func)
    if layer is None:
        raise CompeteError(
            f"the router of {moe.func.__name__} keeps outputs as wide as its inputs, and a projector's are of other width: "
            "leave projector out of --experts-in, or choose another --router"
        )
    submodules = experts_of_width(moe.keywords["submodules"], of_experts)
    built: Callable[..., MoELayer] = layer
    return functools.partial(built, *moe.args, **(moe.keywords | {"submodules": submodules}))


def experts_of_width(submodules: MoESubmodules, of_experts: TransformerConfig) -> MoESubmodules:
    """The same modules, whose experts are built for outputs as `of_experts` says and inputs as their layer's settings."""
    stock: Any = submodules.experts

    def build(num_local_experts: int, config: TransformerConfig, **keywords: Any) -> torch.nn.Module:
        linears = stock.keywords["submodules"]
        reading = functools.partial(_reading, linears.linear_fc1, config.hidden_size, of_experts.hidden_size)
        linears = dataclasses.replace(linears, linear_fc1=reading)
        experts: torch.nn.Module = stock.func(num_local_experts, of_experts, submodules=linears, **keywords)
        return experts

    return dataclasses.replace(submodules, experts=build)


def _reading(linear: Callable[..., Any], width: int, replaced: int, *sizes: int, **keywords: Any) -> Any:
    """A first linear layer of experts whose input is `width` wide: Megatron asks for ([experts,] input, output), with the
    hidden size of the experts' output as the input's."""
    *experts, input_size, output_size = sizes
    assert input_size == replaced, (input_size, replaced)
    return linear(*experts, width, output_size, **keywords)


class ChangingWidth(MoELayer):
    """A MoE layer whose dispatcher takes back rows as wide as the experts' outputs."""

    def preprocess(self, hidden_states: Tensor, probs: Tensor, routing_map: Tensor) -> tuple[Tensor, Tensor]:
        """As upstream's; what the all-to-all dispatcher restores at the end has the shape of the output."""
        dispatched: tuple[Tensor, Tensor] = super().preprocess(hidden_states, probs, routing_map)
        dispatcher, width = self.token_dispatcher, self.experts.config.hidden_size
        dispatcher.hidden_shape = torch.Size((*dispatcher.hidden_shape[:-1], width))
        dispatcher.hidden_shape_before_permute = torch.Size((dispatcher.hidden_shape_before_permute[0], width))
        return dispatched


class StockProjection(ChangingWidth, MoELayer):
    """Megatron's routing."""


class CompetingProjection(ChangingWidth, CompeteMoELayer):
    """Competition."""


class VariableProjection(ChangingWidth, VariableMoELayer):
    """A baseline's routing to any number of experts."""


CHANGING_WIDTH: dict[Any, type[MoELayer]] = {
    MoELayer: StockProjection,
    CompeteMoELayer: CompetingProjection,
    VariableMoELayer: VariableProjection,
}
"""By the layer that it is otherwise."""
