"""What a competing layer cannot do, said before the first step: each refusal names Megatron's flag."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig, flag_of
from megatron_compete.moe.competition import parts_of
from megatron_compete.moe.graphs import capture_routers
from megatron_compete.moe.kernels.choice import check_score_kernel
from megatron_compete.routing.responses import RESPONSES
from megatron_compete.routing.rule import RouterRule
from megatron_compete.routing.utility import utility


@dataclass(frozen=True)
class Refusal:
    """A setting of Megatron's that excludes competition."""

    flag: str
    applies: Callable[[TransformerConfig], object]
    reason: str
    kind: str | None = None
    """The kind of competition that it excludes; None: both."""


REFUSALS = (
    Refusal("--cuda-graph-impl full_iteration", lambda c: c.cuda_graph_impl == "full_iteration", "one graph holds whole steps, and who competes changes from step to step (--cuda-graph-impl transformer_engine captures layers)"),
    Refusal("--cuda-graph-impl local", lambda c: c.cuda_graph_impl == "local" and (capture_routers(c) or not c.is_hybrid_model), "it captures layers as they run at the first step, competing or not (--cuda-graph-impl transformer_engine captures normal steps)"),
    Refusal("--moe-apply-probs-on-input", lambda c: c.moe_apply_probs_on_input, "experts would answer weighted tokens, and their answers would not be weighted"),
    Refusal("--moe-enable-routing-replay", lambda c: c.moe_enable_routing_replay, "who wins is not replayed: only --compete-kind utility leaves tokens to the experts that are", kind="response"),
    Refusal("--fp4-format", lambda c: c.fp4, "the scoring pass does not pad its tokens"),
    Refusal("--te-precision-config-file", lambda c: c.quant_recipe is not None, "modules with a precision of their own would score in it"),
    Refusal("--use-transformer-engine-op-fuser", lambda c: c.use_transformer_engine_op_fuser, "it fuses experts into kernels of new GPUs, which the scoring pass was never run with"),
)  # fmt: skip


def check_all_parts(model: Any, compete: CompeteConfig) -> None:
    """`check_supported` of each part of a model that has experts.

    Args:
        model: as for `moe.competition.competing_layers`.
    """
    transformers = [part.transformer for part in parts_of(model)]
    with_experts = [transformer for transformer in transformers if transformer.num_moe_experts]
    for transformer in with_experts or transformers[-1:]:  # without any, the check says what to give
        check_supported(transformer, compete)


def check_supported(config: TransformerConfig, compete: CompeteConfig) -> None:
    """Raise a `CompeteError` for the first setting under which competition would be wrong or impossible."""
    if not config.num_moe_experts:
        raise CompeteError("competition needs a mixture of experts: give --num-experts, or --router topk")
    if config.moe_router_topk > config.num_moe_experts:
        raise CompeteError(
            f"--moe-router-topk {config.moe_router_topk} is more than --num-experts {config.num_moe_experts}: "
            "lower it or add experts"
        )
    _check_groups(config)
    check_score_kernel(
        compete.score_kernel, config, utility if compete.kind == "utility" else RESPONSES[compete.response]
    )
    if compete.response_gradients == "all":
        _check_response_gradients(config)
    if compete.kind == "utility":
        _check_utility(config, compete)
    for refusal in REFUSALS:
        if refusal.kind in (None, compete.kind) and refusal.applies(config):
            raise CompeteError(
                f"{refusal.flag} does not work with competition routing: {refusal.reason}. "
                "Leave it out or use --router topk"
            )


def _check_groups(config: TransformerConfig) -> None:
    """Megatron takes both of these, and then chooses experts outside of the groups, or groups by nothing."""
    groups, chosen, top_k = config.moe_router_num_groups, config.moe_router_group_topk, config.moe_router_topk
    if not groups or not chosen:
        return
    given = f"--moe-router-group-topk {chosen} of --moe-router-num-groups {groups}"
    size = config.num_moe_experts // groups
    if chosen * size < top_k:
        raise CompeteError(
            f"{given} leaves a token {chosen * size} of {config.num_moe_experts} experts, fewer than "
            f"--moe-router-topk {top_k}: raise the one or lower the other"
        )
    if not 1 <= top_k // chosen <= size:
        raise CompeteError(
            f"{given} ranks a group by its best {top_k // chosen} experts (--moe-router-topk {top_k} / {chosen}), and it "
            f"has {size}: give a --moe-router-group-topk from {-(-top_k // size)} to {top_k}"
        )


def _check_response_gradients(config: TransformerConfig) -> None:
    """`--compete-response-gradients all`: experts are run again in the backward pass, outside of Megatron's own."""
    if config.gradient_accumulation_fusion:
        raise CompeteError(
            "--compete-response-gradients all returns expert gradients to autograd, and Megatron's fused accumulation "
            "bypasses it: give --no-gradient-accumulation-fusion"
        )
    if config.fp8_param:
        raise CompeteError(
            "--compete-response-gradients all sums expert gradients like the parameters, which --fp8-param-gather "
            "keeps in FP8: leave one of the two out"
        )
    if config.overlap_moe_expert_parallel_comm:
        raise CompeteError(
            "--compete-response-gradients all runs experts again at the end of a layer's backward pass, and under "
            "--overlap-moe-expert-parallel-comm their gradients may be on their way by then: leave one of the two out"
        )
    if config.moe_latent_size:
        raise CompeteError(
            "--compete-response-gradients all runs the experts again, and not the projections of --moe-latent-size "
            f"{config.moe_latent_size}: leave one of the two out"
        )
    if config.overlap_dispatch_backward_with_experts_wgrad:
        raise CompeteError(
            "--compete-response-gradients all asks autograd for expert gradients, which "
            "--overlap-dispatch-backward-with-experts-wgrad leaves for later: leave one of the two out"
        )
    recomputed = config.recompute_modules if config.recompute_granularity == "selective" else None
    if "moe_act" in (recomputed or ()):
        raise CompeteError(
            "--compete-response-gradients all asks autograd for expert gradients, which Megatron's recomputed "
            "activations refuse: leave moe_act out of --recompute-modules"
        )


def _check_utility(config: TransformerConfig, compete: CompeteConfig) -> None:
    if config.moe_router_topk == config.num_moe_experts:
        raise CompeteError(
            f"{flag_of('kind')} utility has nothing to add where --moe-router-topk {config.moe_router_topk} selects all "
            "experts: lower it, or use --router topk"
        )
    if compete.utility_gradient == "missing" and RouterRule.of(vars(config)).pre_softmax:
        sinkhorn = config.moe_router_load_balancing_type == "sinkhorn"
        flag = "--moe-router-load-balancing-type sinkhorn" if sinkhorn else "--moe-router-pre-softmax"
        raise CompeteError(
            f"{flag_of('utility_gradient')} missing would count twice with {flag}, whose sparse gradient reaches the "
            f"logits of all experts: use {flag_of('utility_gradient')} dense"
        )
