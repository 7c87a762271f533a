"""Layer specs whose MoE layers compete, or route by a baseline router: Megatron's own with the MoE layers exchanged."""

import copy
import dataclasses
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

from megatron.core.models.gpt.experimental_attention_variant_module_specs import (
    get_transformer_block_with_experimental_attention_variant_spec,
)
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.models.hybrid import hybrid_layer_specs
from megatron.core.models.hybrid.hybrid_block import HybridStack, HybridStackSubmodules
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_compete.common.errors import CompeteError
from megatron_compete.moe.baselines import BASELINES, check_baseline
from megatron_compete.moe.baselines.config import BaselineConfig
from megatron_compete.moe.baselines.step import install_router_step
from megatron_compete.moe.competition import Competition, competing_layers, transformer_of
from megatron_compete.moe.graphs import eager_modules
from megatron_compete.moe.layer import CompeteMoELayer
from megatron_compete.moe.validation import check_supported

Exchange = Callable[[functools.partial], functools.partial]
"""From the builder of a layer's `MoELayer` to what is built in its place."""
NO_MODULES: Mapping[Any, Any] = types.MappingProxyType({})


def decoder_layer_spec(model_config: Any, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """Megatron's spec of this pipeline stage's decoder layers, with or without an experimental attention variant."""
    transformer = transformer_of(model_config)
    if transformer.experimental_attention_variant is not None:
        return get_transformer_block_with_experimental_attention_variant_spec(transformer, vp_stage)
    return get_gpt_decoder_block_spec(
        transformer,
        use_transformer_engine=transformer.transformer_impl == "transformer_engine",
        normalization=transformer.normalization,
        qk_l2_norm=transformer.qk_l2_norm,
        vp_stage=vp_stage,
    )


def compete_layer_spec(
    model_config: Any,
    vp_stage: int | None = None,
    *,
    competition: Competition,
    stock: Callable[..., Any] = decoder_layer_spec,
) -> Any:
    """Megatron's decoder spec of this pipeline stage with every `MoELayer` replaced by `CompeteMoELayer`.

    Args:
        model_config: a TransformerConfig, or a configuration that has one in `transformer` (upstream: `GPTModelConfig` of
            `megatron.training.models.gpt`).
        vp_stage: virtual pipeline stage that is being built.
        competition: the model's one.
        stock: makes the spec to replace them in, of the same two arguments; a trainer has its own choice.
    Raises:
        CompeteError: a setting that excludes competition, or a MoE module that is not Megatron's.
    """
    transformer = transformer_of(model_config)
    exchange = competing(transformer, competition)
    return with_moe(stock(model_config, vp_stage), exchange, eager_modules(transformer))


def compete_hybrid_spec(model_config: Any, *, competition: Competition, stock: ModuleSpec | None = None) -> ModuleSpec:
    """As `compete_layer_spec`, the spec of a hybrid model's layers.

    Args:
        model_config: as for `compete_layer_spec` (upstream: `HybridModelConfig` of `megatron.training.models.hybrid`).
        stock: the spec to replace them in; default Megatron's.
    """
    transformer = transformer_of(model_config)
    exchange = competing(transformer, competition)
    return hybrid_with_moe(stock or hybrid_layer_specs.hybrid_stack_spec, exchange, eager_modules(transformer))


def competing(transformer: TransformerConfig, competition: Competition) -> Exchange:
    """The exchange of `MoELayer` for `CompeteMoELayer`.

    Raises:
        CompeteError: a setting that excludes competition.
    """
    check_supported(transformer, competition.config)

    def exchange(moe: functools.partial) -> functools.partial:
        return functools.partial(CompeteMoELayer, *moe.args, **moe.keywords, competition=competition)

    return exchange


def unchanged(moe: functools.partial) -> functools.partial:
    """The exchange of `MoELayer` for itself: Megatron's own routing."""
    return moe


def baseline_layer_spec(
    model_config: Any,
    vp_stage: int | None = None,
    *,
    router: str,
    settings: BaselineConfig,
    stock: Callable[..., Any] = decoder_layer_spec,
) -> Any:
    """Megatron's decoder spec of this pipeline stage with the routers of its MoE layers replaced by a baseline.

    Args:
        model_config, vp_stage, stock: as for `compete_layer_spec`.
        router: its name in `BASELINES`.
    Raises:
        CompeteError: a setting that excludes this router, or a MoE module that is not Megatron's.
    """
    return with_moe(stock(model_config, vp_stage), routing_by(model_config, router, settings))


def baseline_hybrid_spec(model_config: Any, *, router: str, settings: BaselineConfig) -> ModuleSpec:
    """As `baseline_layer_spec`, the spec of a hybrid model's layers."""
    return hybrid_with_moe(hybrid_layer_specs.hybrid_stack_spec, routing_by(model_config, router, settings))


def routing_by(model_config: Any, router: str, settings: BaselineConfig) -> Exchange:
    """The exchange of Megatron's routers for a baseline.

    Raises:
        CompeteError: a setting that excludes this router.
    """
    transformer = transformer_of(model_config)
    check_baseline(router, transformer, settings)
    install_router_step(transformer, BASELINES[router].router)
    num_layers = len(competing_layers(model_config))
    return functools.partial(with_baseline, router=router, settings=settings, num_layers=num_layers)


def with_baseline(
    moe: functools.partial, router: str, settings: BaselineConfig, num_layers: int = 1
) -> functools.partial:
    """A layer's `MoELayer` builder with the router that `--router` names, and with a dispatcher that suits it.

    Args:
        num_layers: layers of the whole model with this router.
    """
    baseline = BASELINES[router]
    keywords: dict[str, Any] = {"settings": settings}
    if baseline.of_model:
        keywords["num_layers"] = num_layers
    router_builder: Callable[..., Any] = baseline.router
    submodules = dataclasses.replace(moe.keywords["submodules"], router=functools.partial(router_builder, **keywords))
    layer: Callable[..., Any] = baseline.layer
    return functools.partial(layer, *moe.args, **(moe.keywords | {"submodules": submodules}))


def with_moe[LayerSpec: (ModuleSpec, TransformerBlockSubmodules)](
    spec: LayerSpec, exchange: Exchange, modules: Mapping[Any, Any] = NO_MODULES
) -> LayerSpec:
    """A copy of the spec of a layer or of a block with `exchange` applied to every `MoELayer`.

    Megatron shares one spec among the layers of a kind; dense layers stay as they are.

    Args:
        modules: what is built in place of the transformer layer around a `MoELayer`.
    """
    if isinstance(spec, TransformerBlockSubmodules):
        assert spec.layer_specs is not None
        return dataclasses.replace(spec, layer_specs=[with_moe(layer, exchange, modules) for layer in spec.layer_specs])
    mlp = spec.submodules.mlp
    if not isinstance(mlp, functools.partial) or mlp.func is not MoELayer:
        if "MoE" in repr(mlp):
            raise CompeteError(f"expected Megatron's MoELayer in the layer spec and found {mlp!r}")
        return spec
    spec = copy.copy(spec)
    spec.submodules = copy.copy(spec.submodules)
    spec.submodules.mlp = exchange(mlp)
    spec.module = modules.get(spec.module, spec.module)
    return spec


def hybrid_with_moe(spec: ModuleSpec, exchange: Exchange, modules: Mapping[Any, Any] = NO_MODULES) -> ModuleSpec:
    """A copy of a hybrid model's spec with `exchange` applied to the MoE layers of its decoder alone.

    The spec's submodules stay Megatron's: those are what the layers of multi-token prediction are made of, where a MoE
    layer has the number of one in the decoder and nothing that tells it from that one.
    """
    if spec.module is not HybridStack:
        raise CompeteError(
            f"expected Megatron's HybridStack as the decoder of a hybrid model and found {spec.module!r}"
        )
    return dataclasses.replace(
        spec, module=ExchangedStack, params=spec.params | {"exchange": exchange, "modules": modules}
    )


class ExchangedStack(HybridStack):
    """Megatron's stack of hybrid layers with other MoE layers. The arguments are its own, and the exchange."""

    def __init__(
        self,
        config: TransformerConfig,
        submodules: HybridStackSubmodules,
        *args: Any,
        exchange: Exchange,
        modules: Mapping[Any, Any] = NO_MODULES,
        **keywords: Any,
    ) -> None:
        moe_layer = with_moe(submodules.moe_layer, exchange, modules)
        super().__init__(config, dataclasses.replace(submodules, moe_layer=moe_layer), *args, **keywords)
