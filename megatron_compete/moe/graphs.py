"""CUDA graphs of transformer layers (`--cuda-graph-impl transformer_engine`) beside competition.

A graph repeats what it saw when it was captured, so it holds a normal step's router. Where it covers attention, dense
MLPs or Mamba layers alone, the router stays outside and nothing changes. Where it covers the router (`moe_router`,
`moe_preprocess`, `moe`, or whole layers), a layer runs without its graphs while it competes, and captures none.
"""

from collections.abc import Mapping
from typing import Any

from megatron.core.transformer.cuda_graphs import is_graph_capturing, is_graph_warmup
from megatron.core.transformer.enums import CudaGraphModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import MoETransformerLayer, TransformerLayer

OF_MOE = (CudaGraphModule.moe, CudaGraphModule.moe_router, CudaGraphModule.moe_preprocess)


def capture_routers(config: TransformerConfig) -> bool:
    """Whether graphs, once captured, hold the router."""
    modules = config.cuda_graph_modules
    return config.cuda_graph_impl != "none" and (not modules or any(one in modules for one in OF_MOE))


def is_capturing() -> bool:
    """Whether what runs now is being captured, or warmed up for it: not for the sake of its results."""
    return is_graph_capturing() or is_graph_warmup()


class EagerWhileCompeting(TransformerLayer):
    """A layer whose graphs are out of sight while its MoE layer competes: all of Megatron's code then runs it eagerly,
    the EP-overlap schedule and delayed weight gradients included."""

    @property
    def cuda_graphs(self) -> list[Any]:
        """Megatron's list of captured graphs; empty where the layer is to run eagerly."""
        try:
            graphs: list[Any] = self.__dict__["_captured"]
        except KeyError:
            raise AttributeError("cuda_graphs") from None
        return [] if graphs and self.mlp.competes() else graphs

    @cuda_graphs.setter
    def cuda_graphs(self, graphs: list[Any]) -> None:
        self.__dict__["_captured"] = graphs


class EagerWhileCompetingMoE(EagerWhileCompeting, MoETransformerLayer):
    """The same for the layer that holds a hybrid model's mixture of experts."""


EAGER: dict[Any, Any] = {TransformerLayer: EagerWhileCompeting, MoETransformerLayer: EagerWhileCompetingMoE}


def eager_modules(config: TransformerConfig) -> Mapping[Any, Any]:
    """What stands for Megatron's layers where their MoE layers compete: nothing else unless graphs hold routers."""
    return EAGER if capture_routers(config) else {}
