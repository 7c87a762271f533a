"""Baseline routers: other routers' papers as `TopKRouter` subclasses in Megatron's own MoE layer, by `--router NAME`."""

from collections.abc import Callable
from dataclasses import dataclass, fields

from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_compete.common.errors import CompeteError
from megatron_compete.moe.baselines.config import BaselineConfig, flag_of
from megatron_compete.moe.baselines.cosine import CosineRouter, PerturbedCosineRouter, check_cosine
from megatron_compete.moe.baselines.default_moe import DefaultMoELayer, DefaultMoERouter
from megatron_compete.moe.baselines.fixed_checks import OF_FROZEN, OF_HASH, check_fixed
from megatron_compete.moe.baselines.frozen import FrozenRouter
from megatron_compete.moe.baselines.hash import HashRouter
from megatron_compete.moe.baselines.layer import VariableMoELayer
from megatron_compete.moe.baselines.remoe import ReMoERouter
from megatron_compete.moe.baselines.thresholds import ExpertThresholdRouter, USMoERouter
from megatron_compete.moe.baselines.variable_checks import OF_DEFAULTS, check_variable

Check = Callable[[TransformerConfig, BaselineConfig], None]


@dataclass(frozen=True)
class Baseline:
    """A router that `--router` can name."""

    router: type[TopKRouter]
    """Constructed as `TopKRouter(config, pg_collection, is_mtp_layer)` with `settings: BaselineConfig` besides."""

    layer: type[MoELayer] = MoELayer
    """Of tokens with more or fewer than K experts `VariableMoELayer`, whose dispatcher counts them."""

    of_model: bool = False
    """Whether the router is also told `num_layers`: layers of the whole model with this router."""

    check: Check | None = None
    """Raises a `CompeteError` for settings that exclude this router."""

    reads: tuple[str, ...] = ()
    """Fields of `BaselineConfig` that have an effect on it."""


COSINE = ("temperature", "learn_temperature", "dim")
THRESHOLD = ("threshold_decay", "threshold_warmup")

BASELINES: dict[str, Baseline] = {
    "xmoe": Baseline(CosineRouter, check=check_cosine, reads=COSINE),
    "cosine": Baseline(PerturbedCosineRouter, check=check_cosine, reads=(*COSINE, "perturbation")),
    "remoe": Baseline(
        ReMoERouter,
        layer=VariableMoELayer,
        of_model=True,
        check=check_variable("remoe", (), "whose own penalty balances the load"),
        reads=("l1_init", "l1_factor"),
    ),
    "usmoe": Baseline(
        USMoERouter,
        layer=VariableMoELayer,
        check=check_variable("usmoe", ("aux_loss",), "which knows only aux_loss"),
        reads=("usmoe_alpha", *THRESHOLD),
    ),
    "threshold": Baseline(
        ExpertThresholdRouter,
        layer=VariableMoELayer,
        check=check_variable("threshold", (), "whose thresholds balance the load"),
        reads=THRESHOLD,
    ),
    "default-moe": Baseline(
        DefaultMoERouter,
        layer=DefaultMoELayer,
        check=check_variable("default-moe", ("aux_loss",), "which knows only aux_loss", more=OF_DEFAULTS),
        reads=("default_decay", "default_part"),
    ),
    "hash": Baseline(HashRouter, check=check_fixed("hash", OF_HASH)),
    "frozen": Baseline(FrozenRouter, check=check_fixed("frozen", OF_FROZEN)),
}
"""By name of `--router`."""


def check_flags(router: str, settings: BaselineConfig) -> None:
    """Raise a `CompeteError` for a `--router-*` flag that has no effect with `--router` as given."""
    reads = BASELINES[router].reads if router in BASELINES else ()
    for field in fields(BaselineConfig):
        value = getattr(settings, field.name)
        if field.name not in reads and value != field.default:
            readers = ", ".join(name for name, baseline in BASELINES.items() if field.name in baseline.reads)
            raise CompeteError(
                f"{flag_of(field.name)} {value} has no effect with --router {router} (it is of {readers}): leave it out"
            )


def check_baseline(router: str, config: TransformerConfig, settings: BaselineConfig) -> None:
    """Raise a `CompeteError` for the first setting under which this router would be wrong or impossible."""
    baseline = BASELINES[router]
    if not config.num_moe_experts:
        raise CompeteError(f"--router {router} needs a mixture of experts: give --num-experts, or --router topk")
    if baseline.layer is VariableMoELayer and config.moe_token_dispatcher_type == "flex":
        raise CompeteError(
            f"--moe-token-dispatcher-type flex sends K copies of every token, and --router {router} may choose more or "
            "fewer: use alltoall"
        )
    if baseline.check is not None:
        baseline.check(config, settings)
