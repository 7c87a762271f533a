"""One MoE layer with a baseline router on any layout of ranks, with given weights."""

from typing import Any

from megatron_compete.moe.baselines.config import BaselineConfig
from tests.moe.layouts import EXPERTS, Layout, load, transformer_config
from tests.moe.reference import Weights


def build_baseline(
    layout: Layout, router: str, settings: BaselineConfig, weights: Weights | None = None, **overrides: Any
) -> Any:
    """Megatron's layer with the router that `--router` names.

    Args:
        weights: this rank's share of them is copied into the layer; None leaves it as initialised.
        overrides: settings of Megatron's.
    """
    from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
    from megatron.core.transformer.moe.moe_utils import get_default_pg_collection

    from megatron_compete.moe.specs import with_baseline

    transformer = transformer_config(layout, **overrides)
    stock = get_moe_module_spec(use_te=False, num_experts=EXPERTS, moe_grouped_gemm=False)
    layer = with_baseline(stock, router, settings)(transformer, pg_collection=get_default_pg_collection())
    layer.set_layer_number(1)
    if weights is not None:
        load(layer, weights)
    return layer.train()
