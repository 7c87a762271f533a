"""Rival routers: other routers' papers as `TopKRouter` subclasses in Megatron's own MoE layer, by `--router NAME`."""

from collections.abc import Callable
from dataclasses import dataclass, fields

from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_compete.errors import CompeteError
from megatron_compete.moe.rivals.config import RivalConfig, flag_of
from megatron_compete.moe.rivals.cosine import CosineRouter, PerturbedCosineRouter, check_cosine
from megatron_compete.moe.rivals.remoe import ReMoERouter
from megatron_compete.moe.rivals.thresholds import ExpertThresholdRouter, USMoERouter
from megatron_compete.moe.rivals.variable_checks import check_variable

Check = Callable[[TransformerConfig, RivalConfig], None]


@dataclass(frozen=True)
class Rival:
    """A router that `--router` can name."""

    router: type[TopKRouter]
    """Constructed as `TopKRouter(config, pg_collection, is_mtp_layer)` with `settings: RivalConfig` besides."""

    variable: bool = False
    """Whether a token may have more or fewer than K experts; the layer then has a dispatcher that counts them."""

    check: Check | None = None
    """Raises a `CompeteError` for settings that exclude this router."""

    reads: tuple[str, ...] = ()
    """Fields of `RivalConfig` that have an effect on it."""


COSINE = ("temperature", "learn_temperature", "dim")
THRESHOLD = ("threshold_decay", "threshold_warmup")

RIVALS: dict[str, Rival] = {
    "xmoe": Rival(CosineRouter, check=check_cosine, reads=COSINE),
    "cosine": Rival(PerturbedCosineRouter, check=check_cosine, reads=(*COSINE, "perturbation")),
    "remoe": Rival(
        ReMoERouter,
        variable=True,
        check=check_variable("remoe", (), "whose own penalty balances the load"),
        reads=("l1_init", "l1_factor"),
    ),
    "usmoe": Rival(
        USMoERouter,
        variable=True,
        check=check_variable("usmoe", ("aux_loss",), "which knows only aux_loss"),
        reads=("usmoe_alpha", *THRESHOLD),
    ),
    "threshold": Rival(
        ExpertThresholdRouter,
        variable=True,
        check=check_variable("threshold", (), "whose thresholds balance the load"),
        reads=THRESHOLD,
    ),
}
"""By name of `--router`."""


def check_flags(router: str, settings: RivalConfig) -> None:
    """Raise a `CompeteError` for a `--router-*` flag that has no effect with `--router` as given."""
    reads = RIVALS[router].reads if router in RIVALS else ()
    for field in fields(RivalConfig):
        value = getattr(settings, field.name)
        if field.name not in reads and value != field.default:
            readers = ", ".join(name for name, rival in RIVALS.items() if field.name in rival.reads)
            raise CompeteError(
                f"{flag_of(field.name)} {value} has no effect with --router {router} (it is of {readers}): leave it out"
            )


def check_rival(router: str, config: TransformerConfig, settings: RivalConfig) -> None:
    """Raise a `CompeteError` for the first setting under which this router would be wrong or impossible."""
    rival = RIVALS[router]
    if not config.num_moe_experts:
        raise CompeteError(f"--router {router} needs a mixture of experts: give --num-experts, or --router topk")
    if rival.variable and config.moe_token_dispatcher_type == "flex":
        raise CompeteError(
            f"--moe-token-dispatcher-type flex sends K copies of every token, and --router {router} may choose more or "
            "fewer: use alltoall"
        )
    if rival.check is not None:
        rival.check(config, settings)
