"""What stands for the MoE layers of each part of a model: competition, Megatron's own, or a baseline router."""

import functools
from collections.abc import Mapping

from megatron_compete.common.errors import CompeteError
from megatron_compete.moe.baselines import BASELINES, check_baseline
from megatron_compete.moe.baselines.config import BaselineConfig
from megatron_compete.moe.baselines.default_moe import DefaultMoELayer
from megatron_compete.moe.baselines.step import install_router_step
from megatron_compete.moe.competition import Competition, competing_layers
from megatron_compete.moe.specs import Exchange, competing, unchanged, with_baseline
from megatron_compete.vlm.config import PARTS, Part
from megatron_compete.vlm.parts import VisionLanguageConfig
from megatron_compete.vlm.validation import check_competing

Exchanges = Mapping[Part, Exchange]
"""By part; parts without experts need none."""


def competing_parts(config: VisionLanguageConfig, competition: Competition) -> Exchanges:
    """Every layer with experts competes.

    Raises:
        CompeteError: a setting, or a part, that excludes competition.
    """
    if competition.config.enabled:
        check_competing(config.settings)
    return {part: competing(config.transformer_of(part), competition) for part in config.with_experts}


def stock_parts(config: VisionLanguageConfig) -> Exchanges:
    """Megatron's top-K routing."""
    return dict.fromkeys(config.with_experts, unchanged)


def baseline_parts(config: VisionLanguageConfig, router: str, settings: BaselineConfig) -> Exchanges:
    """The routers of all layers with experts are the baseline's.

    Raises:
        CompeteError: a setting, or a part, that excludes this router.
    """
    check_parts(config, router, settings)
    # Megatron's schedule ends steps by the language model's settings, with experts or without
    install_router_step(config.transformer, BASELINES[router].router)
    num_layers = len(competing_layers(config))

    def exchange(moe: functools.partial) -> functools.partial:
        return with_baseline(moe, router, settings, num_layers)

    return dict.fromkeys(config.with_experts, exchange)


def check_parts(config: VisionLanguageConfig, router: str, settings: BaselineConfig) -> None:
    """Raise a `CompeteError` for a setting, or a part of the model, that excludes this baseline."""
    for part in config.with_experts:
        check_baseline(router, config.transformer_of(part), settings)
    if router == "hash":
        raise CompeteError(
            "--router hash routes by token id, and pictures have none: use --router frozen for one that does not learn"
        )
    if BASELINES[router].layer is DefaultMoELayer and "projector" in config.with_experts:
        raise CompeteError(
            f"--router {router} lets experts that were not chosen answer with vectors as wide as the layer's input, and a "
            "projector's outputs are of other width: leave projector out of --experts-in"
        )
    shares = {part: _chosen_share(config, part) for part in PARTS if part in config.with_experts}
    if BASELINES[router].of_model and len(set(shares.values())) > 1:
        listed = ", ".join(f"{share:g} in {part}" for part, share in shares.items())
        raise CompeteError(
            f"--router {router} holds one share of the experts in the whole model, and they are {listed}: give all parts "
            "the same --num-experts and --moe-router-topk"
        )


def _chosen_share(config: VisionLanguageConfig, part: Part) -> float:
    transformer = config.transformer_of(part)
    return float(transformer.moe_router_topk / transformer.num_moe_experts)
