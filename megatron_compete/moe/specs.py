"""Layer specs whose MoE layers compete, or route by a baseline router."""

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_compete.common.errors import CompeteError
from megatron_compete.moe.baselines import BASELINES, check_baseline
from megatron_compete.moe.baselines.config import BaselineConfig
from megatron_compete.moe.baselines.layer import VariableMoELayer
from megatron_compete.moe.baselines.step import install_router_step
from megatron_compete.moe.competition import Competition
from megatron_compete.moe.layer import CompeteMoELayer
from megatron_compete.moe.validation import check_supported


def compete_layer_spec(
    model_config: Any, vp_stage: int | None = None, *, competition: Competition
) -> TransformerBlockSubmodules:
    """Megatron's decoder block spec of this pipeline stage with every `MoELayer` replaced by `CompeteMoELayer`.

    Args:
        model_config: Megatron's GPTModelConfig (upstream: `megatron.training.models.gpt`).
        vp_stage: virtual pipeline stage that is being built.
        competition: the model's one.
    Raises:
        CompeteError: a setting that excludes competition, or a MoE module that is not Megatron's.
    """
    transformer: TransformerConfig = model_config.transformer
    check_supported(transformer, competition.config)

    def competing(moe: functools.partial) -> functools.partial:
        return functools.partial(CompeteMoELayer, *moe.args, **moe.keywords, competition=competition)

    return _block_with(transformer, vp_stage, competing)


def baseline_layer_spec(
    model_config: Any, vp_stage: int | None = None, *, router: str, settings: BaselineConfig
) -> TransformerBlockSubmodules:
    """Megatron's decoder block spec of this pipeline stage with the routers of its MoE layers replaced by a baseline.

    Args:
        model_config: Megatron's GPTModelConfig (upstream: `megatron.training.models.gpt`).
        vp_stage: virtual pipeline stage that is being built.
        router: its name in `BASELINES`.
    Raises:
        CompeteError: a setting that excludes this router, or a MoE module that is not Megatron's.
    """
    transformer: TransformerConfig = model_config.transformer
    check_baseline(router, transformer, settings)
    install_router_step(transformer, BASELINES[router].router)
    return _block_with(transformer, vp_stage, lambda moe: with_baseline(moe, router, settings))


def with_baseline(moe: functools.partial, router: str, settings: BaselineConfig) -> functools.partial:
    """A layer's `MoELayer` builder with the router that `--router` names, and with a dispatcher that suits it."""
    baseline = BASELINES[router]
    router_builder: Callable[..., Any] = baseline.router
    submodules = dataclasses.replace(
        moe.keywords["submodules"], router=functools.partial(router_builder, settings=settings)
    )
    layer: Callable[..., Any] = VariableMoELayer if baseline.variable else MoELayer
    return functools.partial(layer, *moe.args, **(moe.keywords | {"submodules": submodules}))


def _block_with(
    transformer: TransformerConfig, vp_stage: int | None, replace: Callable[[functools.partial], functools.partial]
) -> TransformerBlockSubmodules:
    """Megatron's decoder block spec with `replace` applied to every `MoELayer`."""
    block = get_gpt_decoder_block_spec(
        transformer,
        use_transformer_engine=transformer.transformer_impl == "transformer_engine",
        normalization=transformer.normalization,
        qk_l2_norm=transformer.qk_l2_norm,
        vp_stage=vp_stage,
    )
    block.layer_specs = [_with_moe(spec, replace) for spec in block.layer_specs]
    return block


def _with_moe(layer_spec: ModuleSpec, replace: Callable[[functools.partial], functools.partial]) -> ModuleSpec:
    """A copy of `layer_spec` (Megatron shares one among the layers of a kind); dense layers stay as they are."""
    mlp = layer_spec.submodules.mlp
    if not isinstance(mlp, functools.partial) or mlp.func is not MoELayer:
        if "MoE" in repr(mlp):
            raise CompeteError(f"expected Megatron's MoELayer in the layer spec and found {mlp!r}")
        return layer_spec
    layer_spec = copy.copy(layer_spec)
    layer_spec.submodules = copy.copy(layer_spec.submodules)
    layer_spec.submodules.mlp = replace(mlp)
    return layer_spec
