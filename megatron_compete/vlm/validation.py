"""What a vision-language model cannot do, said before it is built: each refusal names Megatron's flag.

`layout/vision_rules.py` says the same of arguments as parsed, in the same words.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_compete.common.errors import CompeteError
from megatron_compete.vlm.config import Part, VisionConfig, flag_of


@dataclass(frozen=True)
class Refusal:
    """A setting of Megatron's that excludes vision-language models."""

    flag: str
    applies: Callable[[TransformerConfig], object]
    reason: str


PATCHES_ARE_WHOLE = "a tower's patches are not split over ranks, which experts under tensor parallelism need"
SEQUENCES_ARE_WHOLE = "a sequence is split when its images are in it, and masks of padding here are of whole sequences"
ONE_CHUNK = "tower and projector lie on the first stage, before the one chunk that it has of the language model"

REFUSALS = (
    Refusal("--tensor-model-parallel-size", lambda c: c.tensor_model_parallel_size > 1, PATCHES_ARE_WHOLE),
    Refusal("--context-parallel-size", lambda c: c.context_parallel_size > 1, SEQUENCES_ARE_WHOLE),
    Refusal("virtual pipeline stages", lambda c: c.virtual_pipeline_model_parallel_size is not None, ONE_CHUNK),
    Refusal("--mtp-num-layers", lambda c: c.mtp_num_layers, "LLaVAModel hands no tokens on to the layers that predict further ones"),
    Refusal("--hybrid-layer-pattern", lambda c: c.is_hybrid_model, "the language model is a GPTModel"),
    Refusal("--overlap-moe-expert-parallel-comm", lambda c: c.overlap_moe_expert_parallel_comm, "its schedule knows the layers of a GPTModel alone"),
    Refusal("--cuda-graph-impl", lambda c: c.cuda_graph_impl != "none", "graphs take as many tokens at each step, and images are few or many"),
)  # fmt: skip

FROZEN: dict[Part, str] = {"vision": "freeze_tower", "projector": "freeze_projector", "language": "freeze_language"}
"""Settings that freeze a part."""


def refused(flag: str, reason: str) -> str:
    """What is said of a flag, with its value or without, that excludes vision-language models."""
    return f"{flag} does not work with a vision-language model: {reason}; leave it out"


def broken_experts(part: Part, experts: int, top_k: int, ranks: int, groups: int | None) -> Iterator[str]:
    """What is wrong with the experts of tower or projector.

    Args:
        ranks: --expert-model-parallel-size.
        groups: --moe-router-num-groups.
    """
    if experts % ranks:
        yield (
            f"{experts} experts in {part} do not divide among --expert-model-parallel-size {ranks}: give a multiple of it "
            f"as {flag_of('num_experts')} or --num-experts"
        )
    if groups and experts % groups:
        yield (
            f"{experts} experts in {part} do not divide into --moe-router-num-groups {groups}: give a multiple of it as "
            f"{flag_of('num_experts')}, or leave the groups out"
        )
    if top_k > experts:
        yield f"{flag_of('router_topk')} or --moe-router-topk {top_k} is more than the {experts} experts in {part}: lower it"


def check_model(base: TransformerConfig, settings: VisionConfig) -> None:
    """Raise a `CompeteError` for the first setting with which a vision-language model would be wrong or impossible.

    Args:
        base: the TransformerConfig of all arguments.
    """
    for refusal in REFUSALS:
        if refusal.applies(base):
            raise CompeteError(refused(refusal.flag, refusal.reason))
    size, shards = base.expert_model_parallel_size, base.expert_tensor_parallel_size
    if shards > 1 and {"vision", "projector"} & set(settings.experts_in):
        raise CompeteError(
            f"--expert-tensor-parallel-size {shards} splits an expert, whose bias every part would add, and experts of tower "
            "and projector have biases: leave it out"
        )
    if "vision" in settings.experts_in and size > 1 and base.moe_token_dispatcher_type == "allgather":
        raise CompeteError(
            f"--moe-token-dispatcher-type allgather with --expert-model-parallel-size {size} takes as many tokens from every "
            "rank, and ranks have as many patches as their samples have images: use alltoall"
        )
    if base.num_moe_experts is not None:
        _check_balancing(base, settings)
        _check_biases(base, settings)


def _check_balancing(base: TransformerConfig, settings: VisionConfig) -> None:
    """Balance over several ranks' tokens goes wrong where some have only text or fillers (upstream: `TopKRouter`)."""
    kinds = base.moe_router_load_balancing_type
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if "global_aux_loss" in kinds and {"vision", "projector"} & set(settings.experts_in):
        raise CompeteError(
            "--moe-router-load-balancing-type global_aux_loss has routers of all ranks wait for each other, and those of tower "
            "and projector see nothing where a rank has only text: use aux_loss or seq_aux_loss"
        )
    if "quantile_balancing" in kinds and settings.experts_in:
        raise CompeteError(
            "--moe-router-load-balancing-type quantile_balancing counts fillers as tokens, ranks with only text as ranks, and "
            "moves frozen parts: use aux_loss or seq_aux_loss"
        )


def _check_biases(base: TransformerConfig, settings: VisionConfig) -> None:
    """Megatron updates the expert biases of a stage's layers in one tensor (upstream: `_update_router_expert_bias`)."""
    of_vision = settings.num_experts or base.num_moe_experts
    experts = {part: base.num_moe_experts if part == "language" else of_vision for part in settings.experts_in}
    if base.moe_router_enable_expert_bias and len(set(experts.values())) > 1:
        raise CompeteError(
            f"--moe-router-enable-expert-bias stacks the biases of all layers, and experts are {base.num_moe_experts} in the "
            f"language model and {of_vision} elsewhere: leave it out, or leave out {flag_of('num_experts')}"
        )


def check_competing(settings: VisionConfig) -> None:
    """Raise a `CompeteError` where experts would compete that are not trained."""
    for part in settings.experts_in:
        if getattr(settings, FROZEN[part]):
            raise CompeteError(
                f"{flag_of(FROZEN[part])} keeps the routers in {part} from learning who wins: leave it out, leave {part} out "
                f"of {flag_of('experts_in')}, or use --router topk"
            )
