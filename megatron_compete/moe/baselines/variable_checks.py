"""What routers with any number of experts per token cannot do, said before the first step."""

from collections.abc import Callable

from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_compete.common.errors import CompeteError
from megatron_compete.moe.baselines.config import BaselineConfig
from megatron_compete.moe.validation import Refusal

REFUSALS = (
    Refusal("--moe-router-score-function", lambda c: c.moe_router_score_function != "softmax", "its weights have a formula of their own"),
    Refusal("--moe-router-pre-softmax", lambda c: c.moe_router_pre_softmax and c.moe_router_topk > 1, "its weights have a formula of their own"),
    Refusal("--moe-router-fusion", lambda c: c.moe_router_fusion, "the fused kernel chooses K experts"),
    Refusal("--moe-router-num-groups", lambda c: c.moe_router_num_groups, "groups limit a choice of K experts"),
    Refusal("--moe-router-enable-expert-bias", lambda c: c.moe_router_enable_expert_bias, "the bias shifts a choice of K experts"),
    Refusal("--moe-enable-routing-replay", lambda c: c.moe_enable_routing_replay, "it replays K experts a token"),
    Refusal("--moe-expert-capacity-factor", lambda c: c.moe_expert_capacity_factor is not None, "a capacity counts on K experts a token"),
    Refusal("--moe-router-padding-for-quantization", lambda c: c.moe_router_padding_for_quantization, "not yet proven with it"),
    Refusal("--cuda-graph-impl", lambda c: c.cuda_graph_impl != "none", "its number of rows differs from step to step"),
    Refusal("--overlap-moe-expert-parallel-comm", lambda c: c.overlap_moe_expert_parallel_comm, "not yet proven with it"),
)  # fmt: skip
"""Settings of Megatron's that exclude any of them. At K = 1 Megatron wants --moe-router-pre-softmax, which changes nothing."""


OF_DEFAULTS = (
    Refusal("--moe-token-dispatcher-type", lambda c: c.moe_token_dispatcher_type != "alltoall", "others sum a token's outputs before they can be observed"),
    Refusal("--moe-latent-size", lambda c: c.moe_latent_size, "default vectors are those of whole outputs"),
    Refusal("--moe-apply-probs-on-input", lambda c: c.moe_apply_probs_on_input, "outputs are observed without their weights"),
)  # fmt: skip
"""And those that exclude default vectors."""


def balance_types(config: TransformerConfig) -> dict[str, float]:
    """Megatron's kinds of load balance that are on, with their coefficients."""
    types, coefficients = config.moe_router_load_balancing_type, config.moe_aux_loss_coeff
    pairs = zip(types, coefficients) if isinstance(types, list) else [(types, coefficients)]
    return {kind: coefficient for kind, coefficient in pairs if coefficient or kind in ("sinkhorn", "quantile_balancing")}  # fmt: skip


def check_variable(
    router: str, balance: tuple[str, ...], why: str, more: tuple[Refusal, ...] = ()
) -> Callable[[TransformerConfig, BaselineConfig], None]:
    """The check of one router for the registry.

    Args:
        balance: the kinds of Megatron's load balance that it can be given besides.
        why: what stands against the others.
        more: settings that exclude this router besides.
    """

    def check(config: TransformerConfig, settings: BaselineConfig) -> None:
        for refusal in (*REFUSALS, *more):
            if refusal.applies(config):
                raise CompeteError(
                    f"{refusal.flag} does not work with --router {router}: {refusal.reason}. "
                    "Leave it out or use --router topk"
                )
        for kind, coefficient in balance_types(config).items():
            if kind not in balance:
                raise CompeteError(
                    f"--moe-router-load-balancing-type {kind} with --moe-aux-loss-coeff {coefficient:g} does not work with "
                    f"--router {router}, {why}: leave them out"
                )

    return check
