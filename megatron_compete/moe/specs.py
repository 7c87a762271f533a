"""Layer specs whose MoE layers compete, for any trainer of Megatron's: --spec megatron_compete.moe.specs compete_layer_spec."""

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

from megatron_compete.config import CompeteConfig
from megatron_compete.errors import CompeteError
from megatron_compete.moe.competition import Competition, layer_places, moe_layer_numbers
from megatron_compete.moe.layer import CompeteMoELayer
from megatron_compete.moe.metrics import LogIntervals, install_metrics
from megatron_compete.moe.rivals import RIVALS, Rival, check_rival
from megatron_compete.moe.rivals.config import RivalConfig
from megatron_compete.moe.rivals.step import install_router_step
from megatron_compete.moe.validation import check_supported
from megatron_compete.schedule.balanced import Place


def compete_layer_spec(
    model_config: Any, vp_stage: int | None = None, competition: Competition | None = None
) -> TransformerBlockSubmodules:
    """Megatron's decoder block spec of this pipeline stage with every `MoELayer` replaced by `CompeteMoELayer`.

    Args:
        model_config: Megatron's GPTModelConfig (upstream: `megatron.training.models.gpt`).
        vp_stage: virtual pipeline stage that is being built.
        competition: None makes one from the running trainer's arguments: `--compete-*` where its parser has them, else
            the defaults.
    Raises:
        CompeteError: a setting that excludes competition, or a MoE module that is not Megatron's.
    """
    transformer: TransformerConfig = model_config.transformer
    competition = competition or _competition_of_trainer(transformer)
    check_supported(transformer, competition.config)

    def competing(moe: functools.partial) -> functools.partial:
        return functools.partial(CompeteMoELayer, *moe.args, **moe.keywords, competition=competition)

    return _block_with(transformer, vp_stage, competing)


def rival_layer_spec(
    model_config: Any, vp_stage: int | None = None, *, router: str, settings: RivalConfig
) -> TransformerBlockSubmodules:
    """Megatron's decoder block spec of this pipeline stage with the routers of its MoE layers replaced by a rival.

    Args:
        model_config: Megatron's GPTModelConfig (upstream: `megatron.training.models.gpt`).
        vp_stage: virtual pipeline stage that is being built.
        router: its name in `RIVALS`.
    Raises:
        CompeteError: a setting that excludes this router, or a MoE module that is not Megatron's.
    """
    transformer: TransformerConfig = model_config.transformer
    check_rival(router, transformer, settings)
    install_router_step(transformer, RIVALS[router].router)
    return _block_with(transformer, vp_stage, lambda moe: with_rival(moe, router, settings))


def with_rival(moe: functools.partial, router: str, settings: RivalConfig) -> functools.partial:
    """A layer's `MoELayer` builder with the router that `--router` names, and with a dispatcher that suits it."""
    rival = RIVALS[router]
    router_builder: Callable[..., Any] = rival.router
    submodules = dataclasses.replace(
        moe.keywords["submodules"], router=functools.partial(router_builder, settings=settings)
    )
    return functools.partial(_layer_of(rival), *moe.args, **(moe.keywords | {"submodules": submodules}))


def _layer_of(rival: Rival) -> Callable[..., Any]:
    if not rival.variable:
        return MoELayer
    from megatron_compete.moe.rivals.layer import VariableMoELayer

    return VariableMoELayer


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


def trainer_step() -> int:
    """The iteration, from 0, that Megatron's training loop is in."""
    from megatron.training import get_args

    return getattr(get_args(), "curr_iteration", 0)


@functools.cache
def _trainer_competition(
    config: CompeteConfig, layer_numbers: tuple[int, ...], places: tuple[Place, ...], num_experts: int
) -> Competition:
    from megatron.training import get_args

    from megatron_compete.training.schedule_keeping import check_agreement, keep_schedule

    args = get_args()
    competition = Competition(config, layer_numbers, trainer_step, places)
    install_metrics(competition, num_experts, LogIntervals.of(args))
    keep_schedule(competition, args)
    check_agreement([], competition)
    return competition


def _competition_of_trainer(transformer: TransformerConfig) -> Competition:
    """One competition per process, whatever the number of virtual stages."""
    from megatron.training import get_args

    from megatron_compete.training.arguments import compete_config_from_args

    config, layer_numbers = compete_config_from_args(get_args()), moe_layer_numbers(transformer)
    return _trainer_competition(config, layer_numbers, layer_places(transformer), transformer.num_moe_experts or 0)
