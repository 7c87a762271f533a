"""What routers that do not learn cannot do, or what would have no effect on them, said before the first step."""

from collections.abc import Callable

from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_compete.common.errors import CompeteError
from megatron_compete.moe.baselines.config import BaselineConfig
from megatron_compete.moe.baselines.variable_checks import balance_types
from megatron_compete.moe.validation import Refusal

OF_FROZEN = (
    Refusal("--moe-z-loss-coeff", lambda c: c.moe_z_loss_coeff, "its logits are not to be learnt"),
    Refusal("--moe-router-enable-expert-bias", lambda c: c.moe_router_enable_expert_bias, "the bias would move its choice"),
)  # fmt: skip

BY_ID = "a token's id alone says its experts"
OF_HASH = (
    Refusal("--pipeline-model-parallel-size", lambda c: c.pipeline_model_parallel_size > 1, "later stages see no token ids"),
    Refusal("--mtp-num-layers", lambda c: c.mtp_num_layers, "its layers see other tokens than the embedding was last given"),
    Refusal("--hybrid-layer-pattern", lambda c: c.is_hybrid_model, "not yet proven with it"),
    Refusal("--overlap-moe-expert-parallel-comm", lambda c: c.overlap_moe_expert_parallel_comm, "two microbatches are in flight, and the ids are of one"),
    Refusal("--cuda-graph-impl", lambda c: c.cuda_graph_impl != "none", "a captured layer would not read the ids again"),
    Refusal("--moe-z-loss-coeff", lambda c: c.moe_z_loss_coeff, "it has no logits"),
    Refusal("--moe-router-score-function", lambda c: c.moe_router_score_function != "softmax", "it has no logits"),
    Refusal("--moe-router-pre-softmax", lambda c: c.moe_router_pre_softmax and c.moe_router_topk > 1, "it has no logits"),
    Refusal("--moe-router-fusion", lambda c: c.moe_router_fusion, "it has no logits"),
    Refusal("--moe-input-jitter-eps", lambda c: c.moe_input_jitter_eps is not None, BY_ID),
    Refusal("--moe-router-num-groups", lambda c: c.moe_router_num_groups, BY_ID),
    Refusal("--moe-router-enable-expert-bias", lambda c: c.moe_router_enable_expert_bias, BY_ID),
    Refusal("--moe-router-force-load-balancing", lambda c: c.moe_router_force_load_balancing, BY_ID),
    Refusal("--moe-router-force-biased", lambda c: c.moe_router_force_biased is not None, BY_ID),
    Refusal("--moe-enable-routing-replay", lambda c: c.moe_enable_routing_replay, BY_ID),
    Refusal("--moe-expert-capacity-factor", lambda c: c.moe_expert_capacity_factor is not None, "weights are all alike, and the smallest would be dropped"),
    Refusal("--moe-router-padding-for-quantization", lambda c: c.moe_router_padding_for_quantization, "not yet proven with it"),
)  # fmt: skip


def check_fixed(router: str, refusals: tuple[Refusal, ...]) -> Callable[[TransformerConfig, BaselineConfig], None]:
    """The check of a router that does not learn, for the registry: `refusals`, and every load balance of Megatron's."""

    def check(config: TransformerConfig, settings: BaselineConfig) -> None:
        for refusal in refusals:
            if refusal.applies(config):
                raise CompeteError(
                    f"{refusal.flag} does not work with --router {router}: {refusal.reason}. "
                    "Leave it out or use --router topk"
                )
        for kind, coefficient in balance_types(config).items():
            raise CompeteError(
                f"--moe-router-load-balancing-type {kind} with --moe-aux-loss-coeff {coefficient:g} does not work with "
                f"--router {router}, whose choice is fixed: give --moe-aux-loss-coeff 0.0, and no sinkhorn or "
                "quantile_balancing"
            )

    return check
